"""Image files: photographs as RGB, masks as grey, both upright."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps


def open_image(path: Path) -> Image.Image:
    """Read an image as RGB with its EXIF orientation applied; transparency lies on white."""
    upright = _upright(path)
    if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
        upright = upright.convert("RGBA")
        ground = Image.new("RGBA", upright.size, "white")
        return Image.alpha_composite(ground, upright).convert("RGB")
    return upright.convert("RGB")


def open_mask(path: Path) -> Image.Image:
    """Read a mask as grey, with its EXIF orientation applied."""
    return _upright(path).convert("L")


def _upright(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        upright: Image.Image = ImageOps.exif_transpose(image)
    if upright.mode == "F":
        raise ValueError("has floating-point pixels; convert it to 8 bits")
    if upright.mode == "I" or upright.mode.startswith("I;16"):
        # Pillow's own conversion would clip 16 bits of grey at 255: a white picture.
        return Image.fromarray((np.asarray(upright) // 257).clip(0, 255).astype(np.uint8))
    return upright
