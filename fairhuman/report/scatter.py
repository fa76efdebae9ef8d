"""A chart of labelled points with error bars, as inline SVG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from fairhuman.report import axes
from fairhuman.report.axes import Axis
from fairhuman.report.parts import Html, number

_MANY = 14
"""Points from which on a chart is drawn wide, with small letters."""


@dataclass(frozen=True)
class Curve:
    """Places that are joined by straight lines."""

    places: Sequence[tuple[float, float]]
    colour: str
    """A CSS class."""


@dataclass(frozen=True)
class _Type:
    """The sizes of a chart's letters and points, in its units."""

    letter: float
    """Width of a letter of a label, about."""
    line: float
    """Height of a line of text."""
    radius: float


_USUAL, _SMALL = _Type(6.2, 14.0, 4.5), _Type(3.2, 7.0, 2.0)


@dataclass(frozen=True)
class Point:
    """A point; the errors reach as far to either side."""

    label: str
    x: float
    y: float
    x_error: float = 0.0
    y_error: float = 0.0
    colour: str = "c-0"
    """A CSS class: see `parts.colour`."""


def scatter(
    points: Sequence[Point],
    title: str,
    x_label: str,
    y_label: str,
    *,
    log_x: bool = False,
    curves: Sequence[Curve] = (),
) -> Html:
    """Return a chart of points with their labels, and of lines behind them."""
    x = axes.horizontal([v for p in points for v in (p.x - p.x_error, p.x + p.x_error)], log_x)
    y = axes.vertical([v for p in points for v in (p.y - p.y_error, p.y + p.y_error)])
    told = "; ".join(f"{p.label}: {number(p.x)}, {number(p.y)}" for p in points)
    many = len(points) >= _MANY
    return Html(
        f'<figure class="scatter{" many" if many else ""}"><figcaption>{escape(title)}</figcaption>'
        f'<svg class="{"small" if many else "usual"}" viewBox="0 0 {axes.WIDTH} {axes.HEIGHT}" '
        f'role="img" aria-label="{escape(title)}; {escape(x_label)}, {escape(y_label)}: '
        f'{escape(told)}">'
        + axes.frame(x, y, x_label, y_label)
        + "".join(_curve(curve, x, y) for curve in curves)
        + "".join(_points(points, x, y, _SMALL if many else _USUAL))
        + "</svg></figure>"
    )


def _curve(curve: Curve, x: Axis, y: Axis) -> str:
    places = [(x.place(a), y.place(b)) for a, b in curve.places]
    path = "L".join(f"{a:.1f} {b:.1f}" for a, b in places if a is not None and b is not None)
    return f'<g class="{curve.colour} joined"><path d="M{path}"/></g>'


@dataclass(frozen=True)
class _Box:
    """What a label or a point covers, in the chart's units."""

    left: float
    top: float
    right: float
    bottom: float

    def shared(self, other: _Box) -> float:
        """Return the area that it shares with another."""
        across = min(self.right, other.right) - max(self.left, other.left)
        down = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, across) * max(0.0, down)


_DOWN = (-0.45, 0.3, 1.0, -1.3, 1.85, -2.15, 2.7, -3.0, 3.55, -3.85)
"""From a point down to its label's baseline, in lines of text, the nearest first."""


def _points(points: Sequence[Point], x: Axis, y: Axis, kind: _Type) -> Iterator[str]:
    """Yield the points, each with its label where it covers the least."""
    places = [(x.place(p.x), y.place(p.y), p) for p in points]
    shown = [(across, up, p) for across, up, p in places if across is not None and up is not None]
    near, high = kind.radius + 0.5, 0.8 * kind.line
    taken = [_Box(across - near, up - near, across + near, up + near) for across, up, _ in shown]
    for across, up, point in sorted(shown, key=lambda place: place[:2]):
        width, beside = kind.letter * len(point.label), kind.radius + 3.5
        free: list[tuple[float, int, float, str, _Box]] = []
        for lines in _DOWN:
            down = lines * kind.line
            for side, left in (("", across + beside), (' class="end"', across - beside - width)):
                box = _Box(left, up + down - high, left + width, up + down + 0.2 * kind.line)
                inside = left >= 0 and left + width <= axes.WIDTH
                inside = inside and box.top >= 0 and box.bottom <= y.start
                covered = sum(box.shared(other) for other in taken)
                free.append((covered + (0 if inside else 1e6), len(free), down, side, box))
        *_, down, side, box = min(free, key=lambda place: place[:2])
        taken.append(box)
        label = (across + (-beside if side else beside), up + down)
        yield _point(point, x, y, (across, up), label, side, kind)


def _point(
    point: Point,
    x: Axis,
    y: Axis,
    at: tuple[float, float],
    label: tuple[float, float],
    side: str,
    kind: _Type,
) -> str:
    across, up = at
    bars = ""
    if point.x_error:
        left, right = x.place(point.x - point.x_error), x.place(point.x + point.x_error)
        left = x.start if left is None else left
        bars += f'<line x1="{left:.1f}" x2="{right:.1f}" y1="{up:.1f}" y2="{up:.1f}"/>'
    if point.y_error:
        low, high = y.place(point.y - point.y_error), y.place(point.y + point.y_error)
        bars += f'<line x1="{across:.1f}" x2="{across:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'
    if abs(label[1] - up) > 1.15 * kind.line:  # far enough to ask whose it is
        bars += (
            f'<line class="lead" x1="{across:.1f}" y1="{up:.1f}" '
            f'x2="{label[0]:.1f}" y2="{label[1] - 0.3 * kind.line:.1f}"/>'
        )
    errors = f" ± {number(point.x_error)}" if point.x_error else ""
    told = f"{point.label}: {number(point.x)}{errors}, {number(point.y)}"
    if point.y_error:
        told += f" ± {number(point.y_error)}"
    return (
        f'<g class="{point.colour} point"><title>{escape(told)}</title>{bars}'
        f'<circle cx="{across:.1f}" cy="{up:.1f}" r="{kind.radius}"/>'
        f'<text{side} x="{label[0]:.1f}" y="{label[1]:.1f}">{escape(point.label)}</text></g>'
    )
