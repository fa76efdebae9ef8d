"""Polygons painted twice, in colour and as labels, so that masks are exact under overlaps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from PIL import Image, ImageDraw

Point = tuple[float, float]
Polygon = list[Point]
Color = tuple[int, int, int]

OVERSAMPLING = 4


@dataclass(frozen=True)
class View:
    """Where a frame of figure units lies on the canvas: scaled, turned (degrees), then shifted."""

    x: float
    y: float
    scale: float
    turn: float = 0.0

    def at(self, point: Point) -> Point:
        """Return the canvas position of a point of this frame."""
        c, s = math.cos(math.radians(self.turn)), math.sin(math.radians(self.turn))
        x, y = point
        return (
            self.x + self.scale * (c * x - s * y),
            self.y + self.scale * (s * x + c * y),
        )

    def inner(self, origin: Point, turn: float = 0.0, scale: float = 1.0) -> View:
        """Return a frame whose origin, turn and scale are given in this frame."""
        return View(*self.at(origin), self.scale * scale, self.turn + turn)


def ellipse(
    cx: float, cy: float, rx: float, ry: float, start: float = 0.0, end: float = 360.0
) -> Polygon:
    """Return the arc from `start` to `end` degrees (0 is right, 90 is down) as a polygon."""
    steps = max(8, round(abs(end - start) / 9))
    angles = [math.radians(start + (end - start) * k / steps) for k in range(steps + 1)]
    return [(cx + rx * math.cos(a), cy + ry * math.sin(a)) for a in angles]


def capsule(a: Point, b: Point, ra: float, rb: float) -> Polygon:
    """Return a limb from `a` to `b` with round ends of the two radii."""
    along = math.degrees(math.atan2(b[1] - a[1], b[0] - a[0]))
    return ellipse(*a, ra, ra, along + 90, along + 270) + ellipse(
        *b, rb, rb, along - 90, along + 90
    )


def smooth(points: Sequence[Point], rounds: int = 2) -> Polygon:
    """Return the closed polygon with its corners cut (Chaikin)."""
    result = list(points)
    for _ in range(rounds):
        cut: Polygon = []
        for (ax, ay), (bx, by) in zip(result, result[1:] + result[:1], strict=True):
            cut.append((0.75 * ax + 0.25 * bx, 0.75 * ay + 0.25 * by))
            cut.append((0.25 * ax + 0.75 * bx, 0.25 * ay + 0.75 * by))
        result = cut
    return result


def mirrored(polygon: Sequence[Point], side: int = -1) -> Polygon:
    """Return the polygon with x times `side` (-1 mirrors, 1 copies)."""
    return [(side * x, y) for x, y in polygon]


def mix(a: Color, b: Color, share: float) -> Color:
    """Return `a` with `share` of `b`."""
    r, g, bl = (round(p + (q - p) * share) for p, q in zip(a, b, strict=True))
    return r, g, bl


def shade(color: Color, amount: float = 0.5) -> Color:
    """Return a darker tone, as the outlines have it."""
    return mix(color, (25, 12, 30), amount)


class Canvas:
    """A picture and the map of what each pixel shows (0: nothing annotated)."""

    def __init__(self, size: int) -> None:
        self.size = size
        side = size * OVERSAMPLING
        self.side = side
        self._image = Image.new("RGB", (side, side), (255, 255, 255))
        self._labels = Image.new("L", (side, side), 0)
        self._draw = ImageDraw.Draw(self._image)
        self._mark = ImageDraw.Draw(self._labels)
        self.frame = View(0.0, 0.0, float(side))

    def gradient(self, top: Color, bottom: Color) -> None:
        """Fill the whole picture, from `top` to `bottom`."""
        ramp = Image.linear_gradient("L").resize((self.side, self.side))
        self._image.paste(
            Image.composite(
                Image.new("RGB", ramp.size, bottom), Image.new("RGB", ramp.size, top), ramp
            )
        )

    def blob(
        self,
        view: View,
        parts: Sequence[Polygon],
        color: Color,
        label: int | None = 0,
        line: float = 0.03,
        line_color: Color | None = None,
    ) -> None:
        """Paint the union of the parts with one outline around it.

        The label replaces what lay below, outline included; None leaves it (a pattern, an eye).
        """
        placed = [[view.at(point) for point in part] for part in parts]
        if line > 0:
            width = max(1, round(2 * line * view.scale))
            around = shade(color) if line_color is None else line_color
            for points in placed:
                closed = [*points, points[0], points[1]]
                self._draw.polygon(points, fill=around)
                self._draw.line(closed, fill=around, width=width, joint="curve")
                if label is not None:
                    self._mark.polygon(points, fill=label)
                    self._mark.line(closed, fill=label, width=width, joint="curve")
        for points in placed:
            self._draw.polygon(points, fill=color)
            if label is not None and line <= 0:
                self._mark.polygon(points, fill=label)

    def stroke(self, view: View, points: Sequence[Point], width: float, color: Color) -> None:
        """Paint a line with round ends over what is there, without touching the labels."""
        parts = [capsule(a, b, width / 2, width / 2) for a, b in pairwise(points)]
        self.blob(view, parts, color, None, 0)

    def picture(self) -> Image.Image:
        """Return the picture at its own size."""
        return self._image.reduce(OVERSAMPLING)

    def mask(self, label: int) -> Image.Image:
        """Return the coverage of one label at the picture's size, 255 for a full pixel."""
        table = [255 if value == label else 0 for value in range(256)]
        return self._labels.point(table).reduce(OVERSAMPLING)
