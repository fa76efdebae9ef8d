"""Line charts over a run's steps, as inline SVG with tooltips."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from fairhuman.report import axes
from fairhuman.report.axes import Axis
from fairhuman.report.history import Column, History
from fairhuman.report.parts import Html, number
from fairhuman.report.series import extremes, runs_of, smooth, thinned, window

_FEW = 30


@dataclass(frozen=True)
class Line:
    """A number of a run over its steps."""

    key: str
    """In metrics.jsonl."""
    label: str
    colour: str
    """A CSS class: see `parts.colour`."""
    run: int = 0


@dataclass
class Data:
    """The numbers that a page's charts show: what its tooltips read, exact and step by step."""

    runs: Sequence[History]
    grids: list[list[int]] = field(default_factory=list)
    """Steps."""
    columns: dict[str, tuple[int, Column]] = field(default_factory=dict)
    """By "run:key": the place of the steps in `grids`, and the numbers."""

    def points(self, line: Line) -> tuple[list[int], Column]:
        """Return the steps at which a line's key is in metrics.jsonl, and its numbers there."""
        run = self.runs[line.run]
        there = [
            (step, record[line.key])
            for step, record in zip(run.steps, run.records, strict=True)
            if line.key in record
        ]
        return [step for step, _ in there], [value for _, value in there]

    def add(self, line: Line, steps: Sequence[int], values: Column) -> str:
        """Have a line's numbers on the page; return their name."""
        name = f"{line.run}:{line.key}"
        kept = thinned(values)
        grid = [steps[i] for i in kept]
        if grid not in self.grids:
            self.grids.append(grid)
        self.columns[name] = (self.grids.index(grid), [values[i] for i in kept])
        return name

    @property
    def tree(self) -> dict[str, Any]:
        """Return it for `parts.page`."""
        return {"grids": self.grids, "columns": self.columns}


def lines(
    data: Data,
    title: str,
    shown: Sequence[Line],
    *,
    log: bool = False,
    smoothed: bool = True,
    bounds: tuple[float, float] | None = None,
    level: tuple[str, float] | None = None,
    unit: str = "",
) -> Html:
    """Return a chart: each line with its moving average, if `smoothed`. None is a gap.

    Args:
        data: of the page.
        title: of the chart.
        shown: the lines.
        log: whether y is logarithmic, if all numbers but 0 are above it; 0 is then a gap.
        smoothed: whether there is a moving average.
        bounds: of y; the default is what the numbers need.
        level: a dashed line across the chart, with its name.
        unit: of y.
    """
    curves = [_Curve(line, *data.points(line), smoothed) for line in shown]
    curves = [curve for curve in curves if curve.numbers]
    if not curves:
        return Html("")
    numbers = [value for curve in curves for value in curve.numbers]
    log = log and min(numbers) >= 0 and max(numbers) > 0
    x = axes.step_axis(min(c.steps[0] for c in curves), max(c.steps[-1] for c in curves))
    y = (
        Axis(*bounds, axes.HEIGHT - axes.BOTTOM, axes.TOP)
        if bounds
        else axes.vertical(numbers, log)
    )
    widest = max(curve.window for curve in curves)
    notes = [f"bold: mean of about {widest} steps"] if widest > 1 else []
    if level:
        notes.append(f"dashed: {level[0]} = {number(level[1])}")
    if log and 0 in numbers:
        notes.append("0 is not drawn")
    note = f" <small>{'; '.join(notes)}</small>" if notes else ""
    drawn = _level(y, level[1]) if level else ""
    drawn += "".join(curve.svg(x, y) for curve in curves)
    tips = json.dumps([curve.tip(data) for curve in curves])
    described = "; ".join(f"{c.line.label} ends at {number(c.numbers[-1])}" for c in curves)
    keys = legend([(c.line.label, c.line.colour) for c in curves]) if len(shown) > 1 else ""
    scale = json.dumps([x.low, x.high, x.start, x.end])
    return Html(
        f'<figure class="chart" data-x="{scale}" data-lines="{escape(tips)}">'
        f"<figcaption>{escape(title)}{note}</figcaption>"
        f'<svg viewBox="0 0 {axes.WIDTH} {axes.HEIGHT}" role="img" tabindex="0" '
        f'aria-label="{escape(title)}: {escape(described)}">'
        f"{axes.frame(x, y, 'step', unit)}{drawn}"
        f'<line class="cross" y1="{axes.TOP}" y2="{axes.HEIGHT - axes.BOTTOM}" hidden="" />'
        f"</svg>{keys}</figure>"
    )


def _level(y: Axis, value: float) -> str:
    at = y.place(value)
    ends = f'x1="{axes.LEFT}" x2="{axes.WIDTH - axes.RIGHT}"'
    return "" if at is None else f'<line class="level" {ends} y1="{at:.1f}" y2="{at:.1f}"/>'


class _Curve:
    """One line of a chart, with its moving average."""

    def __init__(self, line: Line, steps: list[int], values: Column, smoothed: bool) -> None:
        self.line = line
        self.steps = steps
        self.values = values
        self.window = window(len(values)) if smoothed else 1
        self.numbers = [value for value in values if value is not None]

    def svg(self, x: Axis, y: Axis) -> str:
        """Return the line, and over it its moving average where there is one."""
        averaged = self.window > 1
        raw = self._path(x, y, self.values, extremes(self.values))
        drawn = f'<g class="{self.line.colour}{" raw" if averaged else ""}">{raw}</g>'
        if averaged:
            mean = smooth(self.values, self.window)
            path = self._path(x, y, mean, thinned(mean))
            drawn += f'<g class="{self.line.colour} mean">{path}</g>'
        return drawn

    def tip(self, data: Data) -> dict[str, str]:
        """Put the numbers into the page; return what its tooltips need to find them."""
        column = data.add(self.line, self.steps, self.values)
        return {"column": column, "label": self.line.label, "colour": self.line.colour}

    def _path(self, x: Axis, y: Axis, values: Column, kept: Sequence[int]) -> str:
        return _path(x, y, [self.steps[i] for i in kept], [values[i] for i in kept])


def legend(items: Sequence[tuple[str, str]]) -> Html:
    """Return what the colours stand for, from (label, colour)."""
    entries = "".join(
        f'<li class="{colour}"><span>{escape(label)}</span></li>' for label, colour in items
    )
    return Html(f'<ul class="legend">{entries}</ul>')


def _path(x: Axis, y: Axis, steps: Sequence[int], values: Column) -> str:
    places: list[tuple[float, float] | None] = []
    for step, value in zip(steps, values, strict=True):
        across, up = x.place(step), None if value is None else y.place(value)
        places.append(None if across is None or up is None else (across, up))
    stretches = runs_of(places)
    line = "".join(
        "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in stretch)
        for stretch in stretches
        if len(stretch) > 1
    )
    # A number between two gaps would not be seen in a line, nor few numbers as such.
    few = sum(map(len, stretches)) <= _FEW
    dots = "".join(
        f"M{across:.1f} {up:.1f}h0"
        for stretch in stretches
        if few or len(stretch) == 1
        for across, up in stretch
    )
    return (f'<path d="{line}"/>' if line else "") + (
        f'<path class="dots" d="{dots}"/>' if dots else ""
    )
