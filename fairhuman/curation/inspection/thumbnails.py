"""Small pictures of samples with their regions drawn."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from fairhuman.common.images import open_mask
from fairhuman.common.pixels import to_image
from fairhuman.data.regions import Annotation
from fairhuman.data.transform import Placement, grey

COLOURS = {"face": (57, 160, 255), "hand": (255, 140, 26)}
_OTHER = (190, 90, 220)
SIDE = 320
JPEG_QUALITY = 82


def colour(region: str) -> tuple[int, int, int]:
    """Return the colour that a region is drawn in."""
    return COLOURS.get(region, _OTHER)


def annotated(
    image: Image.Image, regions: Mapping[str, Annotation], placement: Placement
) -> Image.Image:
    """Return the stored image, small, with boxes, masks and what the crop leaves out (dark)."""
    scale = min(1.0, SIDE / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small = image.resize(size, Image.Resampling.BOX if scale < 0.5 else Image.Resampling.LANCZOS)
    values = np.asarray(small, dtype=np.float32)
    for region, annotation in regions.items():
        if annotation.mask is not None:
            mask = open_mask(annotation.mask).resize(size, Image.Resampling.BOX)
            values = tint(values, grey(mask), colour(region))
    values = _darkened(values, placement)
    drawn = Image.fromarray(values.astype(np.uint8))
    pen = ImageDraw.Draw(drawn)
    for region, annotation in regions.items():
        for x, y, width, height in annotation.boxes:
            left, top, right, bottom = (v * scale for v in (x, y, x + width, y + height))
            pen.rectangle(
                (left, top, max(left, right), max(top, bottom)), outline=colour(region), width=2
            )
    return drawn


def trained(
    pixels: NDArray[np.float32], masks: Mapping[str, NDArray[np.float32]], side: int = SIDE
) -> Image.Image:
    """Return a training image next to its masks at latent resolution, cell by cell.

    Args:
        pixels: [3, H, W] in [-1, 1], as the trainer has them.
        masks: [H / cell, W / cell] in [0, 1] by region, as the trainer has them.
        side: the longer side of each of the two, in pixels.
    """
    image = to_image(torch.from_numpy(pixels))
    scale = side / max(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    image = image.resize(size, Image.Resampling.BOX)
    sheet = Image.new("RGB", (2 * size[0], size[1]))
    sheet.paste(image, (0, 0))
    tinted = np.asarray(image, dtype=np.float32) * 0.6
    for region, mask in masks.items():
        cells = Image.fromarray((mask * 255).round().astype(np.uint8))
        large = cells.resize(size, Image.Resampling.NEAREST)
        tinted = tint(tinted, grey(large), colour(region), 0.75)
    sheet.paste(Image.fromarray(tinted.astype(np.uint8)), (size[0], 0))
    return sheet


def tint(
    values: NDArray[np.float32],
    mask: NDArray[np.float32],
    rgb: tuple[int, int, int],
    strength: float = 0.5,
) -> NDArray[np.float32]:
    """Return an image [H, W, 3] with a colour laid over it where the mask [H, W] is."""
    share = strength * mask[..., None]
    return values * (1 - share) + share * np.asarray(rgb, dtype=np.float32)


def _darkened(values: NDArray[np.float32], placement: Placement) -> NDArray[np.float32]:
    height, width = values.shape[:2]
    scale_x, scale_y = width / placement.stored[0], height / placement.stored[1]
    x, y, across, down = placement.shown()
    inside = np.zeros((height, width), dtype=bool)
    rows = slice(round(y * scale_y), round((y + down) * scale_y))
    inside[rows, round(x * scale_x) : round((x + across) * scale_x)] = True
    return np.where(inside[..., None], values, values * 0.4)
