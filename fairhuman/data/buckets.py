"""Aspect-ratio buckets: the sizes in which images are trained, and which image has which."""

from __future__ import annotations

import functools
import math

from fairhuman.config import Data

Size = tuple[int, int]
"""Width and height, in pixels."""


@functools.cache
def sizes(resolution: int, step: int, max_aspect: float) -> tuple[Size, ...]:
    """Return the buckets: sizes of about the same area, with sides that are multiples of `step`.

    For every side the largest other side by which the area does not exceed that of the square
    (SDXL, arXiv 2307.01952, section 2.2), upright and across.

    Args:
        resolution: side of the square, in pixels; a multiple of `step`.
        step: in pixels.
        max_aspect: of the longer side to the shorter.
    """
    area = resolution**2
    found: set[Size] = set()
    for short in range(step, resolution + 1, step):
        long = area // short // step * step
        if long <= max_aspect * short:
            found |= {(short, long), (long, short)}
    return tuple(sorted(found))


def frame(stored: Size, data: Data) -> Size:
    """Return the size in which an image is trained.

    With buckets the one nearest in aspect ratio, measured by its logarithm; without, the square.
    """
    if not data.buckets:
        return (data.resolution, data.resolution)

    def distance(size: Size) -> float:
        return abs(math.log(stored[0] * size[1] / (stored[1] * size[0])))

    return min(sizes(data.resolution, data.bucket_step, data.max_aspect), key=distance)
