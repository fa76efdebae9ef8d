"""Masks that are files of their own: each checked against its image, and written as grey PNG.

A mask of the upright image's size is taken as it is, one of the stored image's size is turned with
it (see `orientation`); where its size does not show which, it is taken for one of the upright
image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ImageOps

from fairhuman.common.errors import DataError
from fairhuman.common.images import ImageError, open_mask
from fairhuman.curation.importers.orientation import Shape, Size, in_stored_pixels, read_shape
from fairhuman.data.folder import MASKS


@dataclass(frozen=True)
class Mask:
    """A mask that fits its image."""

    path: Path
    image: str
    region: str
    shape: Shape
    """The image's; without orientation where EXIF says of the mask itself how it is turned."""
    size: Size
    mean: float

    def write(self, invert: bool, turn: bool, target: Path) -> None:
        """Write it upright, white = region.

        Args:
            invert: black = region in the file.
            turn: it is one of the stored image.
            target: where to.
        """
        mask = open_mask(self.path)
        mask = ImageOps.invert(mask) if invert else mask
        (self.shape.turned_picture(mask) if turn else mask).save(target, "png")


def checked(
    path: Path, image: Path, name: str, region: str, shape: Shape, invert: bool = False
) -> Mask:
    """Return the mask of an image.

    Args:
        path: the mask's.
        image: the image's path,
        name: its file name in the data set, and
        shape: its shape.
        region: what the mask shows.
        invert: black = region.

    Raises:
        DataError: it cannot be read, has not the image's size, or is the image.
    """
    try:
        mask = open_mask(path)
    except ImageError as error:
        raise DataError(f"{path}: {error}") from None
    if path.samefile(image):
        raise DataError(f"{path}: is the image itself, not its mask")
    own = read_shape(path).orientation != 1
    if mask.size != shape.upright and (own or mask.size != shape.stored):
        raise DataError(
            f"{path}: is {mask.size[0]} x {mask.size[1]} px, its image {image} is "
            f"{shape.upright[0]} x {shape.upright[1]}"
        )
    mean = float(np.asarray(mask).mean()) / 255
    lies = Shape(shape.upright) if own else shape
    return Mask(path, name, region, lies, mask.size, 1 - mean if invert else mean)


def put(
    masks: Sequence[Mask], rows: Mapping[str, dict[str, Any]], invert: bool = False
) -> dict[str, Callable[[Path], None]]:
    """Name masks in the rows of their images, by file name; return what writes each mask's file."""
    turned = in_stored_pixels(
        [mask.shape for mask in masks], [mask.size for mask in masks], habit=False
    )
    files: dict[str, Callable[[Path], None]] = {}
    for mask, turn in zip(masks, turned, strict=True):
        target = target_of(mask.image, mask.region)
        files[target] = partial(mask.write, invert, turn)
        rows[mask.image][f"{mask.region}_mask"] = target
    return files


def target_of(image: str, region: str) -> str:
    """Return the file name of an image's mask in a data set."""
    return f"{MASKS}/{region}/{image.rpartition('.')[0]}.png"
