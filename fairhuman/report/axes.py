"""Where a number lies on a chart, and which numbers its axes show."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

from fairhuman.report.parts import number

WIDTH, HEIGHT = 420, 240
LEFT, RIGHT, TOP, BOTTOM = 58, 10, 20, 36


@dataclass(frozen=True)
class Axis:
    """A scale from numbers to the picture's units, linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    @classmethod
    def over(cls, values: Iterable[float], start: float, end: float, *, log: bool = False) -> Axis:
        """Return the axis that has room for these numbers; a log one needs some above 0."""
        kept = [v for v in values if math.isfinite(v) and (v > 0 or not log)]
        low, high = (min(kept), max(kept)) if kept else (1.0, 10.0) if log else (0.0, 1.0)
        if log:
            return cls(low / 1.15, high * 1.15, start, end, log=True)
        room = 0.04 * (high - low) or 0.04 * abs(high) or 0.5
        return cls(low - room if low < 0 or low > room else 0.0, high + room, start, end)

    def place(self, value: float) -> float | None:
        """Return where a number lies; None if the axis cannot show it."""
        if self.log and value <= 0:
            return None
        low, high, value = map(self._scaled, (self.low, self.high, value))
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self, count: int = 5) -> list[float]:
        """Return round numbers along the axis."""
        if not self.log:
            return _round_numbers(self.low, self.high, count)
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        every = max(1, math.ceil((last - first) / count))
        for steps in ((1.0, 2.0, 5.0), (1.0, 3.0), (1.0,)):
            found = [m * 10.0**e for e in range(first, last + 1, every) for m in steps]
            inside = [value for value in found if self.low <= value <= self.high]
            if len(inside) <= count + 1:
                break
        return inside if len(inside) > 2 else _round_numbers(self.low, self.high, count)

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.log else value


def frame(x: Axis, y: Axis, x_label: str, y_label: str = "") -> str:
    """Return the SVG of both axes, their ticks and names."""
    base = HEIGHT - BOTTOM
    parts = []
    for value in y.ticks():
        at = y.place(value)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
            f'<text class="end" x="{LEFT - 5}" y="{(at or 0) + 4:.1f}">{number(value)}</text>'
        )
    for value in x.ticks():
        at = x.place(value)
        parts.append(f'<text class="mid" x="{at:.1f}" y="{base + 15}">{_short(value)}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>')
    parts.append(
        f'<text class="mid name" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 5}">'
        f"{escape(x_label)}</text>"
    )
    if y_label:
        parts.append(f'<text class="name" x="6" y="11">{escape(y_label)}</text>')
    return "".join(parts)


def horizontal(values: Iterable[float], log: bool = False) -> Axis:
    """Return the x axis of a chart."""
    return Axis.over(values, LEFT, WIDTH - RIGHT, log=log)


def step_axis(first: int, last: int) -> Axis:
    """Return the x axis of a chart over a run's steps."""
    return Axis(first, max(last, first + 1), LEFT, WIDTH - RIGHT)


def vertical(values: Iterable[float], log: bool = False) -> Axis:
    """Return the y axis of a chart."""
    return Axis.over(values, HEIGHT - BOTTOM, TOP, log=log)


def _round_numbers(low: float, high: float, count: int) -> list[float]:
    raw = (high - low) / count
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) if step > 1e-9 else i * step for i in range(first, last + 1)]


def _short(value: float) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else number(value)
