"""A chart of labelled points with error bars, as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from fairhuman.report import axes
from fairhuman.report.axes import Axis
from fairhuman.report.parts import Html, number

_LETTER = 6.2
"""Width of a letter of a label, about."""


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
    points: Sequence[Point], title: str, x_label: str, y_label: str, *, log_x: bool = False
) -> Html:
    """Return a chart of points with their labels."""
    x = axes.horizontal([v for p in points for v in (p.x - p.x_error, p.x + p.x_error)], log_x)
    y = axes.vertical([v for p in points for v in (p.y - p.y_error, p.y + p.y_error)])
    told = "; ".join(f"{p.label}: {number(p.x)}, {number(p.y)}" for p in points)
    return Html(
        f'<figure class="scatter"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {axes.WIDTH} {axes.HEIGHT}" role="img" '
        f'aria-label="{escape(title)}; {escape(x_label)}, {escape(y_label)}: {escape(told)}">'
        + axes.frame(x, y, x_label, y_label)
        + "".join(_point(point, x, y) for point in points)
        + "</svg></figure>"
    )


def _point(point: Point, x: Axis, y: Axis) -> str:
    across, up = x.place(point.x), y.place(point.y)
    if across is None or up is None:
        return ""
    bars = ""
    if point.x_error:
        left, right = x.place(point.x - point.x_error), x.place(point.x + point.x_error)
        left = x.start if left is None else left
        bars += f'<line x1="{left:.1f}" x2="{right:.1f}" y1="{up:.1f}" y2="{up:.1f}"/>'
    if point.y_error:
        low, high = y.place(point.y - point.y_error), y.place(point.y + point.y_error)
        bars += f'<line x1="{across:.1f}" x2="{across:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'
    fits = across + 8 + _LETTER * len(point.label) < axes.WIDTH
    at, side = (across + 8, "") if fits else (across - 8, ' class="end"')
    errors = f" ± {number(point.x_error)}" if point.x_error else ""
    told = f"{point.label}: {number(point.x)}{errors}, {number(point.y)}"
    if point.y_error:
        told += f" ± {number(point.y_error)}"
    return (
        f'<g class="{point.colour} point"><title>{escape(told)}</title>{bars}'
        f'<circle cx="{across:.1f}" cy="{up:.1f}" r="4.5"/>'
        f'<text{side} x="{at:.1f}" y="{up - 6:.1f}">{escape(point.label)}</text></g>'
    )
