"""Boxes that overlap, windows over an image, outlines of hands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from fairhuman.curation.annotation.detector import Point, Region
from fairhuman.data.regions import Box

# Landmarks are joints; the flesh around them reaches this share of the hand's size further.
FLESH = 0.1


def intersection(first: Box, second: Box) -> float:
    """Return the area that two boxes share."""
    width = min(first[0] + first[2], second[0] + second[2]) - max(first[0], second[0])
    height = min(first[1] + first[3], second[1] + second[3]) - max(first[1], second[1])
    return max(0.0, width) * max(0.0, height)


def iou(first: Box, second: Box) -> float:
    """Return intersection over union."""
    shared = intersection(first, second)
    return shared / (first[2] * first[3] + second[2] * second[3] - shared)


def merge(regions: Iterable[Region], overlap: float = 0.3, inside: float = 0.6) -> list[Region]:
    """Keep the surest of regions that are the same thing.

    Args:
        regions: from several looks at one image.
        overlap: same from this intersection over union on,
        inside: or where this share of the smaller one lies in the other.
    """
    kept: list[Region] = []
    for region in sorted(regions, key=lambda found: (-found.score, found.box)):
        area = region.box[2] * region.box[3]
        for other in kept:
            shared = intersection(region.box, other.box)
            least = min(area, other.box[2] * other.box[3])
            if iou(region.box, other.box) >= overlap or shared >= inside * least:
                break
        else:
            kept.append(region)
    return kept


def clip(box: Box, size: tuple[int, int]) -> Box | None:
    """Return the box cut to an image of this width and height; None: nothing of it is inside."""
    left, top = max(0.0, box[0]), max(0.0, box[1])
    right, bottom = min(float(size[0]), box[0] + box[2]), min(float(size[1]), box[1] + box[3])
    if not (right > left and bottom > top):  # also refuses NaN
        return None
    return (left, top, right - left, bottom - top)


def square(center: Point, side: float) -> Box:
    """Return the square box of this side around a point."""
    return (center[0] - side / 2, center[1] - side / 2, side, side)


def windows(size: tuple[int, int], side: float) -> list[Box]:
    """Return squares that cover an image of this width and height, each overlapping by half."""
    places = []
    for length in size:
        count = 1 if length <= side else 1 + int(np.ceil((length - side) / (side / 2)))
        last = max(0.0, length - side)
        places.append([last * i / max(1, count - 1) for i in range(count)])
    return [(x, y, min(side, size[0]), min(side, size[1])) for y in places[1] for x in places[0]]


def hull(points: Sequence[Point]) -> list[Point]:
    """Return the convex hull of points (Andrew's monotone chain)."""
    ordered = sorted(set(points))
    if len(ordered) < 3:
        return ordered

    def half(sequence: Iterable[Point]) -> list[Point]:
        chain: list[Point] = []
        for point in sequence:
            while len(chain) > 1 and _turn(chain[-2], chain[-1], point) <= 0:
                chain.pop()
            chain.append(point)
        return chain[:-1]

    return half(ordered) + half(reversed(ordered))


def _turn(first: Point, second: Point, third: Point) -> float:
    return (second[0] - first[0]) * (third[1] - first[1]) - (second[1] - first[1]) * (
        third[0] - first[0]
    )


def around(points: Sequence[Point] | NDArray[np.float64], margin: float) -> Box:
    """Return the box of the points, wider by `margin` of its longer side on every side."""
    array = np.asarray(points, dtype=np.float64)
    low, high = array.min(axis=0), array.max(axis=0)
    grow = margin * float((high - low).max())
    left, top = (low - grow).tolist()
    width, height = (high - low + 2 * grow).tolist()
    return (left, top, width, height)


def draw_outlines(outlines: Sequence[Sequence[Point]], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return a mask [H, W], 255 within the outlines and the flesh around them."""
    mask = Image.new("L", size)
    pen = ImageDraw.Draw(mask)
    for outline in filter(None, outlines):
        box = around(outline, 0.0)
        radius = FLESH * max(box[2], box[3])
        if len(outline) > 2:
            pen.polygon(list(outline), fill=255)
        closed = [*outline, *outline[:1]]
        pen.line(closed, fill=255, width=max(1, round(2 * radius)))
        for x, y in outline:
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return np.asarray(mask)
