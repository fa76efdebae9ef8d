"""Drawn people nearer or farther: another size of their faces and hands in the same picture."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from fairhuman.demo.drawn.sample import Box, DrawnSample, draw_person, least_side


def window(sample: DrawnSample, size: int) -> DrawnSample:
    """Return a square part of a picture, `size` pixels a side, with what can be seen there.

    Regions that are cut off keep the part of their box inside, if it is large enough to be one.
    """
    left, top = _corner(sample, size)
    edges = (left, top, left + size, top + size)
    faces = [box for box in (_inside(box, left, top, size) for box in sample.faces) if box]
    hands, tips = [], []
    for box, points in zip(sample.hands, sample.fingertips, strict=True):
        if inside := _inside(box, left, top, size):
            hands.append(inside)
            tips.append([(x - left, y - top) for x, y in points])
    return replace(
        sample,
        image=sample.image.crop(edges),
        faces=faces,
        hands=hands,
        face_mask=sample.face_mask.crop(edges),
        hand_mask=sample.hand_mask.crop(edges),
        fingertips=tips,
    )


def draw_zoomed(
    rng: random.Random, size: int, zoom: float = 1.0, hands: bool = True
) -> DrawnSample:
    """Draw a picture, `size` pixels a side, of people that are `zoom` times as large as usual.

    Farther people stand before the same place; of nearer ones, the part that shows the most of
    their hands and faces whole. The other arguments are those of `draw_person`.
    """
    if zoom <= 1:
        return draw_person(rng, size, zoom, hands)
    return window(draw_person(rng, round(zoom * size), hands=hands), size)


def _corner(sample: DrawnSample, size: int) -> tuple[int, int]:
    """Return the window's corner: around the regions that lead to the most whole ones, hands first.

    The middle of any two regions is tried, and of each alone, which is two of the same.
    """
    boxes, whole = [*sample.hands, *sample.faces], sample.image.width
    middles = [(x + w / 2, y + h / 2) for x, y, w, h in boxes] or [(whole / 2, whole / 2)]
    tried = [
        (_start((a + c) / 2, size, whole), _start((b + d) / 2, size, whole))
        for i, (a, b) in enumerate(middles)
        for c, d in middles[i:]
    ]
    return max(tried, key=lambda corner: _shown(boxes, corner, size))


def _start(middle: float, size: int, whole: int) -> int:
    return round(min(max(middle - size / 2, 0), whole - size))


def _shown(boxes: Sequence[Box], corner: tuple[int, int], size: int) -> int:
    """Return how many boxes are whole in a window."""
    left, top = corner
    return sum(
        left <= x and top <= y and x + w <= left + size and y + h <= top + size
        for x, y, w, h in boxes
    )


def _inside(box: Box, left: int, top: int, size: int) -> Box | None:
    """Return the part of a box in the window, in its pixels; None if next to nothing is there."""
    x, y, w, h = box
    x0, y0 = max(x - left, 0), max(y - top, 0)
    x1, y1 = min(x - left + w, size), min(y - top + h, size)
    if min(x1 - x0, y1 - y0) < least_side(size):
        return None
    return (x0, y0, x1 - x0, y1 - y0)
