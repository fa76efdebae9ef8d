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
        unit: of y.
    """
    curves = [(line, *data.points(line)) for line in shown]
    curves = [curve for curve in curves if any(value is not None for value in curve[2])]
    if not curves:
        return Html("")
    numbers = [value for _, _, values in curves for value in values if value is not None]
    log = log and min(numbers) >= 0 and max(numbers) > 0
    x = axes.step_axis(min(s[0] for _, s, _ in curves), max(s[-1] for _, s, _ in curves))
    y = (
        Axis(*bounds, axes.HEIGHT - axes.BOTTOM, axes.TOP)
        if bounds
        else axes.vertical(numbers, log)
    )
    drawn, described, tips = [], [], []
    widest = 1
    for line, steps, values in curves:
        over = window(len(values)) if smoothed else 1
        widest = max(widest, over)
        kept = extremes(values)
        raw = _path(x, y, [steps[i] for i in kept], [values[i] for i in kept])
        drawn.append(f'<g class="{line.colour}{" raw" if over > 1 else ""}">{raw}</g>')
        if over > 1:
            mean = smooth(values, over)
            kept = thinned(mean)
            path = _path(x, y, [steps[i] for i in kept], [mean[i] for i in kept])
            drawn.append(f'<g class="{line.colour} mean">{path}</g>')
        column = data.add(line, steps, values)
        tips.append({"column": column, "label": line.label, "colour": line.colour})
        last = next(value for value in reversed(values) if value is not None)
        described.append(f"{line.label} ends at {number(last)}")
    note = f"bold: mean of about {widest} steps" if widest > 1 else ""
    if log and 0 in numbers:
        note = "; ".join(filter(None, [note, "0 is not drawn"]))
    keys = legend([(line.label, line.colour) for line, *_ in curves]) if len(shown) > 1 else ""
    scale = json.dumps([x.low, x.high, x.start, x.end])
    return Html(
        f'<figure class="chart" data-x="{scale}" data-lines="{escape(json.dumps(tips))}">'
        f"<figcaption>{escape(title)}{f' <small>{note}</small>' if note else ''}</figcaption>"
        f'<svg viewBox="0 0 {axes.WIDTH} {axes.HEIGHT}" role="img" tabindex="0" '
        f'aria-label="{escape(title)}: {escape("; ".join(described))}">'
        f"{axes.frame(x, y, 'step', unit)}{''.join(drawn)}"
        f'<line class="cross" y1="{axes.TOP}" y2="{axes.HEIGHT - axes.BOTTOM}" hidden="" />'
        f"</svg>{keys}</figure>"
    )


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
