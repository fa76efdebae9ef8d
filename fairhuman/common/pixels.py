"""Pixels as the models take them, in [-1, 1], and as files have them, in 0 .. 255."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def to_model(images: Sequence[Image.Image]) -> Tensor:
    """Return RGB images of one size as float32 [B, 3, H, W] in [-1, 1]."""
    arrays = [np.asarray(image.convert("RGB"), dtype=np.float32) for image in images]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2) / 127.5 - 1.0


def to_image(pixels: Tensor) -> Image.Image:
    """Return the RGB image of float pixels [3, H, W]; what is beyond [-1, 1] is cut."""
    values = ((pixels.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).cpu().numpy())


def data_uri(image: Image.Image, quality: int) -> str:
    """Return an image as text that a page can hold, as JPEG."""
    jpeg = io.BytesIO()
    image.save(jpeg, "jpeg", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode()
