"""The pictures of the page, as bytes of PNG or JPEG; and masks that it sends."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from fairhuman.common.errors import DataError
from fairhuman.common.images import ImageError, open_mask
from fairhuman.curation.inspection.inspect import View
from fairhuman.curation.inspection.thumbnails import trained
from fairhuman.data.dataset import People
from fairhuman.data.folder import open_photograph
from fairhuman.data.records import Record

LARGEST_MASK = 2**26
"""Bytes of a mask that the page sends."""
SIDES = (160, 2048)
"""The longer sides that photographs are sent in: for the strip, and for the canvas."""
TRAINED_SIDE = 512


def photograph(path: Path, side: int) -> bytes:
    """Return a photograph as the trainer reads it, at most `side` pixels long, as JPEG.

    Raises:
        DataError: it cannot be read.
    """
    image = open_photograph(path)
    image.thumbnail((side, side), Image.Resampling.BICUBIC)
    return _encoded(image, "JPEG", quality=90)


def mask_png(path: Path) -> bytes:
    """Return a mask as the trainer reads it: a PNG that is white where the region is.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return _encoded(open_mask(path), "PNG", compress_level=1)
    except ImageError as error:
        raise DataError(f"{path}: {error}") from None


def trained_png(record: Record, view: View) -> bytes:
    """Return the training image next to its masks at latent resolution, as PNG.

    Raises:
        DataError: a file cannot be read.
    """
    batch = People([record], view.regions, view.data, view.seed, view.cell)[view.epoch, 0]
    assert batch.pixels is not None  # without a cache
    masks = {region: batch.masks[0, i].numpy() for i, region in enumerate(view.regions)}
    return _encoded(trained(batch.pixels[0].numpy(), masks, TRAINED_SIDE), "PNG", compress_level=1)


def painted_mask(body: bytes, size: tuple[int, int]) -> bytes:
    """Return a mask that was painted on the page as a grey PNG.

    Args:
        body: a PNG, white on black.
        size: width and height of its image.

    Raises:
        DataError: it is no PNG of this size.
    """
    try:
        with Image.open(io.BytesIO(body), formats=["PNG"]) as image:
            if image.size != size:
                found = f"{image.width} x {image.height}"
                raise DataError(f"the mask is {found} px, its image {size[0]} x {size[1]}")
            values = np.asarray(image.convert("RGB").convert("L")).copy()
    except (
        *(UnidentifiedImageError, OSError, SyntaxError, ValueError),
        Image.DecompressionBombError,
    ) as error:
        if isinstance(error, DataError):
            raise
        raise DataError("the mask is no PNG that can be read") from None
    if values.max() < 128:
        values[:] = 0  # the soft rim of a stroke that was erased; `open_mask` refuses such a mask
    return _encoded(Image.fromarray(values), "PNG")


def _encoded(image: Image.Image, kind: str, **options: int) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()
