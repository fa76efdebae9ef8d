"""Where a region is: boxes and masks, and their way to the latent grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fairhuman.common.readable import Readable

Box = tuple[float, float, float, float]
"""x, y, width, height in pixels."""


@dataclass(frozen=True)
class Annotation:
    """Where one region is in a stored image. Empty boxes and no mask: it is nowhere."""

    boxes: tuple[Box, ...] = ()
    mask: Readable | None = None
    """A grey image, white = region. Where there is one it is used instead of the boxes."""


def rasterize(boxes: Sequence[Box], size: tuple[int, int]) -> NDArray[np.float32]:
    """Return how far each pixel is covered by the boxes, [H, W] in [0, 1].

    `size` is the image's width and height.
    Exact for one box, fractions of a pixel included; overlapping boxes are united.
    """
    canvas = np.zeros((size[1], size[0]), dtype=np.float32)
    for x, y, width, height in boxes:
        left, across = _covered(x, width, size[0])
        top, down = _covered(y, height, size[1])
        part = canvas[top : top + len(down), left : left + len(across)]
        np.maximum(part, (down[:, None] * across[None, :]).astype(np.float32), out=part)
    return canvas


def _covered(start: float, length: float, side: int) -> tuple[int, NDArray[np.float64]]:
    """Return the first pixel of a line that a span may touch, and how far those from it are."""
    first = int(np.clip(np.floor(start), 0, side))
    last = int(np.clip(np.ceil(start + length), first, side))
    pixels = np.arange(first, last, dtype=np.float64)
    covered = np.minimum(pixels + 1, start + length) - np.maximum(pixels, start)
    return first, np.clip(covered, 0, 1)


def cut(boxes: Sequence[Box], size: tuple[int, int]) -> list[Box]:
    """Return what of the boxes is inside an image of this width and height; nothing of some."""
    inside = []
    for x, y, width, height in boxes:
        left, top = max(x, 0.0), max(y, 0.0)
        right, bottom = min(x + width, float(size[0])), min(y + height, float(size[1]))
        if (left, top, right, bottom) == (x, y, x + width, y + height):
            inside.append((x, y, width, height))
        elif right > left and bottom > top:
            inside.append((left, top, right - left, bottom - top))
    return inside


def widen(boxes: Sequence[Box], margin: float) -> list[Box]:
    """Return the boxes with `margin` pixels more on every side."""
    return [(x - margin, y - margin, w + 2 * margin, h + 2 * margin) for x, y, w, h in boxes]


def to_latent(mask: Tensor, cell: int) -> Tensor:
    """Bring masks [R, H, W] to the latent grid [R, H / cell, W / cell] by area coverage.

    A cell counts as far as it is covered, so no hand is lost to sampling.
    """
    if mask.shape[0] == 0:
        height, width = mask.shape[1:]
        return mask.new_zeros(0, height // cell, width // cell)
    return F.avg_pool2d(mask[None], cell)[0]


def as_tensor(masks: Sequence[NDArray[np.float32]], size: tuple[int, int]) -> Tensor:
    """Stack masks to [R, H, W], H and W those of `size` (width, height); R may be 0."""
    if not masks:
        return torch.zeros(0, size[1], size[0])
    return torch.from_numpy(np.stack(masks))
