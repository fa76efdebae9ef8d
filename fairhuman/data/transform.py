"""The one geometric transform of a sample: image, masks and boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fairhuman.data.regions import Box

MOST_STARTS = 2**20
"""How many places of a crop are weighed along one side."""
MOST_SHOWN = 2 / 3
"""Of the training image's side, what a region takes that is zoomed in on."""


@dataclass(frozen=True)
class Zoom:
    """What `data.crop: zoom` draws by."""

    share: float
    """Of the draws, those that are shown closer."""
    most: float
    """How much closer, at most."""


@dataclass(frozen=True)
class Placement:
    """How a stored image lies in its training image: resize, then mirror, then crop.

    Drawn once per sample, so that whatever belongs to the image goes the same way.
    """

    stored: tuple[int, int]
    """Width and height of the stored image, EXIF orientation applied."""
    resized: tuple[int, int]
    """Width and height after the resize that makes it cover the training image."""
    left: int
    top: int
    size: tuple[int, int]
    """Width and height of the training image."""
    flip: bool

    @classmethod
    def draw(
        cls,
        stored: tuple[int, int],
        size: tuple[int, int],
        rng: np.random.Generator,
        crop: str = "center",
        flip: bool = False,
        keep: Sequence[Box] = (),
        zoom: Zoom | None = None,
    ) -> Placement:
        """Draw a placement; the same numbers are drawn whatever the settings are.

        Args:
            stored: width and height of the stored image.
            size: width and height of the training image.
            rng: three numbers are drawn from it, and three more for a zoom.
            crop: "center", "random", or "regions": one of the crops with the most of `keep` whole.
            flip: whether to mirror every other sample.
            keep: boxes in pixels of the stored image, for "regions".
            zoom: with "regions", whether to show one of the boxes closer.
        """
        width, height = stored
        scale = max(size[0] / width, size[1] / height)
        horizontal, vertical, mirror = rng.random(3)
        if zoom and keep:
            chance, which, amount = rng.random(3)
            if chance < zoom.share:
                keep = [keep[int(which * len(keep))]]
                scale *= _closer(keep[0], scale, size, zoom.most) ** amount
        resized = (max(size[0], round(width * scale)), max(size[1], round(height * scale)))
        spare = (resized[0] - size[0], resized[1] - size[1])
        flipped = flip and bool(mirror < 0.5)
        if crop == "center":
            return cls(stored, resized, spare[0] // 2, spare[1] // 2, size, flipped)
        boxes: list[Box] = []
        if crop == "regions":
            boxes = cls(stored, resized, 0, 0, size, flipped).boxes(keep)
        columns = [(x, x + width) for x, _, width, _ in boxes]
        rows = [(y, y + height) for _, y, _, height in boxes]
        left = _offset(horizontal, spare[0], size[0], columns)
        top = _offset(vertical, spare[1], size[1], rows)
        return cls(stored, resized, left, top, size, flipped)

    def image(self, image: Image.Image) -> Image.Image:
        """Bring the image, a mask of it or its control image into the training image."""
        if image.size != self.stored:
            raise ValueError(f"expected an image of {self.stored}, got {image.size}")
        width, height = self.size
        # Of the image before it is mirrored.
        left = self.resized[0] - self.left - width if self.flip else self.left
        if self.stored == self.resized:
            image = image.crop((left, self.top, left + width, self.top + height))
        else:
            # Only what is shown is resized: all of a long strip would take gigabytes.
            image = image.resize(self.size, Image.Resampling.LANCZOS, self._source(left))
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.flip else image

    def _source(self, left: int) -> tuple[float, float, float, float]:
        """Return the corners, in the stored image, of a crop with this left side."""
        corners = []
        for axis, start in enumerate((left, self.top)):
            stored, resized, size = (s[axis] for s in (self.stored, self.resized, self.size))
            corners.append((start * stored / resized, (start + size) * stored / resized))
        (x, right), (y, bottom) = corners
        return (x, y, min(right, self.stored[0]), min(bottom, self.stored[1]))

    def shown(self) -> Box:
        """Return what the training image shows, in pixels of the stored image."""
        left = self.resized[0] - self.left - self.size[0] if self.flip else self.left
        x, y, right, bottom = self._source(left)
        return (x, y, right - x, bottom - y)

    def boxes(self, boxes: Sequence[Box]) -> list[Box]:
        """Bring boxes of the stored image into the training image's pixels; they may stick out."""
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
        return (height, width, self.top, self.left, self.size[1], self.size[0])


def _closer(box: Box, scale: float, size: tuple[int, int], most: float) -> float:
    """Return how much closer than `scale` a box may be shown, at least 1."""
    _, _, width, height = box
    shown = scale * max(width / size[0], height / size[1])
    return max(1.0, min(most, 1 / scale, MOST_SHOWN / shown if shown else math.inf))


def _offset(number: float, spare: int, size: int, spans: Sequence[tuple[float, float]]) -> int:
    """Return the crop's start along one side, by a number in [0, 1).

    Any that has the most spans whole; among those, and where no span fits, any that shows the
    most of them.
    """
    if not spans:
        return int(number * (spare + 1))
    # Of a very long strip not every start is tried, for memory.
    starts = np.arange(0, spare + 1, 1 + spare // MOST_STARTS)
    whole = np.zeros(len(starts), dtype=np.int64)
    shown = np.zeros(len(starts))
    for first, last in spans:
        # A pixel's tolerance: boxes come from detectors and resizing that round.
        whole += (starts <= first + 1) & (starts + size >= last - 1)
        shown += np.clip(np.minimum(starts + size, last) - np.maximum(starts, first), 0, None)
    fullest = whole == whole.max()
    best, seen = starts[fullest], shown[fullest].round()
    best = best[seen == seen.max()]
    return int(best[int(number * len(best))])


def grey(image: Image.Image) -> NDArray[np.float32]:
    """Return a grey image as numbers in [0, 1]."""
    return np.asarray(image.convert("L"), dtype=np.float32) / 255.0
