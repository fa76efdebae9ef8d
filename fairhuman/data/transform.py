"""The one geometric transform of a sample: image, masks and boxes alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fairhuman.data.regions import Box


@dataclass(frozen=True)
class Placement:
    """How a stored image lies in its training square: resize, then mirror, then crop.

    Drawn once per sample, so that whatever belongs to the image goes the same way.
    """

    stored: tuple[int, int]
    """Width and height of the stored image, EXIF orientation applied."""
    resized: tuple[int, int]
    """Width and height after the resize that makes the image cover the square."""
    left: int
    top: int
    size: int
    flip: bool

    @classmethod
    def draw(
        cls,
        stored: tuple[int, int],
        size: int,
        rng: np.random.Generator,
        crop: str = "center",
        flip: bool = False,
    ) -> Placement:
        """Draw a placement; the same numbers are drawn whatever the settings are."""
        width, height = stored
        scale = size / min(width, height)
        resized = (max(size, round(width * scale)), max(size, round(height * scale)))
        spare = (resized[0] - size, resized[1] - size)
        horizontal, vertical, mirror = rng.random(3)
        if crop == "random":
            left, top = int(horizontal * (spare[0] + 1)), int(vertical * (spare[1] + 1))
        else:
            left, top = spare[0] // 2, spare[1] // 2
        return cls(stored, resized, left, top, size, flip and bool(mirror < 0.5))

    def image(self, image: Image.Image) -> Image.Image:
        """Bring the image, a mask of it or its control image into the square."""
        if image.size != self.stored:
            raise ValueError(f"expected an image of {self.stored}, got {image.size}")
        if image.size != self.resized:
            image = image.resize(self.resized, Image.Resampling.LANCZOS)
        if self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image.crop((self.left, self.top, self.left + self.size, self.top + self.size))

    def boxes(self, boxes: Sequence[Box]) -> list[Box]:
        """Bring boxes of the stored image into the square's pixels; they may stick out."""
        scale_x = self.resized[0] / self.stored[0]
        scale_y = self.resized[1] / self.stored[1]
        placed = []
        for x, y, width, height in boxes:
            x, y, width, height = x * scale_x, y * scale_y, width * scale_x, height * scale_y
            if self.flip:
                x = self.resized[0] - x - width
            placed.append((x - self.left, y - self.top, width, height))
        return placed

    def time_ids(self) -> tuple[int, int, int, int, int, int]:
        """Return SDXL's micro-conditioning: original size, crop corner, target size.

        Each as height, width (y, x); the corner is that of the mirrored image, as the model
        sees it.
        """
        width, height = self.stored
        return (height, width, self.top, self.left, self.size, self.size)


def grey(image: Image.Image) -> NDArray[np.float32]:
    """Return a grey image as numbers in [0, 1]."""
    return np.asarray(image.convert("L"), dtype=np.float32) / 255.0
