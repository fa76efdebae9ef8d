"""Annotations in the pixels of the stored image, where EXIF shows that image turned.

metadata.jsonl is in pixels of the upright image, as every viewer shows it. Some tools annotate the
pixels as they are stored instead. The size that an annotation declares shows which, where EXIF
swaps the sides of an image that is not square. Where it does not show, the others of the same
import decide if they agree; else the format's own habit does, which each importer states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fairhuman.common.errors import DataError
from fairhuman.common.imagefiles import TURNS, ImageError, opened, orientation
from fairhuman.common.images import open_image

Size = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True)
class Shape:
    """How an image is stored, and how it is to be seen."""

    stored: Size
    orientation: int = 1
    """EXIF's, 1 to 8."""

    @property
    def upright(self) -> Size:
        """Its size with the orientation applied."""
        return self.stored[::-1] if self.orientation >= 5 else self.stored

    def shows(self, declared: Sequence[float] | None) -> bool | None:
        """Return whether a declared size is that of the stored pixels; None: it may be either.

        Compared are the ratios of the sides, so that the sizes of a scaled copy serve too.
        """
        stored = _lies(self.stored)
        if declared is None or self.orientation < 5 or not stored or not _lies(declared):
            return None
        return _lies(declared) == stored

    def turned(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return points [N, 2] of the stored image, x and y, as points of the upright one."""
        width, height = self.stored
        x, y = points[:, 0], points[:, 1]
        places = {
            1: (x, y),
            2: (width - x, y),
            3: (width - x, height - y),
            4: (x, height - y),
            5: (y, x),
            6: (height - y, x),
            7: (height - y, width - x),
            8: (y, width - x),
        }
        return np.column_stack(places[self.orientation])

    def turned_box(self, box: Sequence[float]) -> list[float]:
        """Return a box x, y, width, height of the stored image as one of the upright image."""
        x, y, width, height = box
        corners = self.turned(np.array([(x, y), (x + width, y + height)], dtype=np.float64))
        low, high = corners.min(axis=0), corners.max(axis=0)
        return [*low.tolist(), *(high - low).tolist()]

    def turned_picture(self, picture: Image.Image) -> Image.Image:
        """Return a picture of the stored pixels turned as EXIF turns the image."""
        turn = TURNS.get(self.orientation)
        return picture if turn is None else picture.transpose(turn)


def read_shape(path: Path, whole: bool = False) -> Shape:
    """Return an image's shape from its head, or also decode all of it to see that it is sound.

    Raises:
        DataError: it cannot be read as an image.
    """
    try:
        with opened(path) as image:
            turn = orientation(image)
            # Pillow swaps the sides of a TIFF when it opens it.
            swapped = image.format == "TIFF" and turn >= 5
            size = image.size[::-1] if swapped else image.size
        if whole:
            open_image(path)
    except ImageError as error:
        raise DataError(f"{path}: {error}") from None
    return Shape(size, turn)


def in_stored_pixels(
    shapes: Sequence[Shape], declared: Sequence[Sequence[float] | None], habit: bool
) -> list[bool]:
    """Return for each image whether its annotation is in the pixels as stored.

    Args:
        shapes: of the images.
        declared: the size that each one's annotation is made for, or None.
        habit: what holds where neither that nor the other images of the import show it.
    """
    shown = [shape.shows(size) for shape, size in zip(shapes, declared, strict=True)]
    known = {one for one in shown if one is not None}
    rest = known.pop() if len(known) == 1 else habit
    return [rest if one is None else one for one in shown]


def _lies(size: Sequence[float]) -> int:
    """Return 1 for a picture that is wider than high, -1 for a higher one, 0 for a square."""
    return int(np.sign(size[0] - size[1]))
