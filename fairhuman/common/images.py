"""What an image file shows: photographs as RGB in sRGB, masks as grey, both upright."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from fairhuman.common.imagefiles import (
    FORMATS,
    MAX_PIXELS,
    SUFFIXES,
    UNOPENABLE,
    ImageError,
    decoding,
    load,
    split_alpha,
    upright_size,
)
from fairhuman.common.masks import region_of
from fairhuman.common.readable import Readable

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "SUFFIXES",
    "UNOPENABLE",
    "ImageError",
    "open_image",
    "open_mask",
    "upright_size",
]


def open_image(path: Readable) -> Image.Image:
    """Read an image as RGB: upright by EXIF, in sRGB by its ICC profile, transparency on white.

    A profile that cannot be parsed, or that is of another kind of colours than the pixels, says
    nothing about them: they are then taken for sRGB, as browsers do. The result carries neither
    the profile nor EXIF, which no longer hold for it.

    Raises:
        ImageError: there is no such file, it is damaged, too large, or of none of FORMATS.
    """
    loaded, _ = load(path)
    with decoding():
        colours, alpha = split_alpha(_of_8_bits(loaded))
        image = _srgb(colours, loaded.info.get("icc_profile"))
        if alpha is not None:
            image.putalpha(alpha)
            ground = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(ground, image).convert("RGB")
    image.info = {}
    return image


def open_mask(path: Readable) -> Image.Image:
    """Read a mask as grey (mode L): 255 is the region, 0 is not, what is between counts in part.

    Upright by EXIF. See `fairhuman.common.masks` for what is read as what.

    Raises:
        ImageError: it cannot be read (see `open_image`), or its meaning is not plain.
    """
    loaded, deep = load(path)
    with decoding():
        return Image.fromarray(region_of(loaded, deep))


def _of_8_bits(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ImageError("has floating-point pixels: convert it to 8 bits")
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    values: NDArray[np.int64] = np.asarray(image).astype(np.int64)
    if values.size and (values.min() < 0 or values.max() > 65535):
        raise ImageError("has 32 bits per pixel: convert it to 8 bits")
    # Pillow's own conversion would clip at 255: a white picture.
    return Image.fromarray((values // 257).astype(np.uint8))


_SPACES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK", "LAB": "Lab"}
"""The colour space that a profile must be of, by Pillow's mode."""


def _srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Return an image without transparency as RGB in sRGB."""
    if image.mode not in _SPACES:
        image = image.convert("RGB")
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            space = source.profile.xcolor_space.strip()
            if image.mode == "L" and space == "RGB":
                image = image.convert("RGB")
            if space == _SPACES[image.mode]:
                target = ImageCms.createProfile("sRGB")
                change = ImageCms.buildTransform(source, target, image.mode, "RGB")
                converted: Image.Image | None = ImageCms.applyTransform(image, change)
                assert converted is not None  # not in place
                return converted
        # Damaged, or without the tables that a conversion needs.
        except (OSError, ImageCms.PyCMSError, ValueError, TypeError):
            pass
    return image if image.mode == "RGB" else image.convert("RGB")
