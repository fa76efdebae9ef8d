"""Transparency that is a mask: the alpha channel of a photograph, as kohya's `alpha_mask` reads it.

The trainer shows transparent pixels on white. A photograph whose alpha is a mask is therefore
written without it, so that what lies under the mask's black stays visible.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from fairhuman.common.errors import DataError
from fairhuman.common.imagefiles import ImageError, decoding, load, opened, split_alpha


def has_alpha(path: Path) -> bool:
    """Return whether an image has an alpha channel, by its head alone.

    Raises:
        ImageError: it cannot be read.
    """
    with opened(path) as image:
        return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def read_alpha(path: Path) -> Image.Image | None:
    """Return an image's alpha as grey, upright; None where it has none, or is opaque everywhere.

    Raises:
        DataError: the image cannot be read, or nothing in it is opaque.
    """
    _, alpha = _split(path)
    if alpha is None:
        return None
    least, most = alpha.getextrema()
    assert isinstance(most, int)  # of one channel
    if most < 128:  # the trainer's reader of masks takes it for class numbers
        raise DataError(
            f"{path}: its alpha is at most {most} of 255, so that it masks nothing: make opaque "
            "what is the region"
        )
    return None if least == 255 else alpha


def write_alpha(path: Path, target: Path) -> None:
    """Write an image's alpha as a mask."""
    alpha = read_alpha(path)
    assert alpha is not None  # only such images have a mask
    alpha.save(target, "png")


def write_without_alpha(path: Path, target: Path) -> None:
    """Write an image as PNG, upright and without alpha; its colours and ICC profile are kept."""
    colours, _ = _split(path)
    profile = colours.info.get("icc_profile")
    colours.info = {}  # EXIF too, whose orientation is applied
    colours.save(target, "png", icc_profile=profile)


def _split(path: Path) -> tuple[Image.Image, Image.Image | None]:
    try:
        with decoding():
            picture, _ = load(path)
            return split_alpha(picture)
    except ImageError as error:
        raise DataError(f"{path}: {error}") from None
