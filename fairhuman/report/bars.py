"""Charts of shares: strips over time, and one bar in parts."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from fairhuman.report.axes import WIDTH
from fairhuman.report.chart import legend
from fairhuman.report.history import Column
from fairhuman.report.parts import Html, number

_STRIPES = 60
_ROW, _HEAD = 30, 15


def strips(title: str, steps: Sequence[int], rows: Sequence[tuple[str, Column]]) -> Html:
    """Return one strip per row: how many of the numbers are below 0, stretch by stretch.

    Args:
        title: of the chart.
        steps: of the numbers.
        rows: label and one number per step; a stretch without any is left open.
    """
    count = min(_STRIPES, len(steps))
    edges = [round(i * len(steps) / count) for i in range(count + 1)]
    height = _ROW * len(rows) + 18
    parts = []
    for row, (label, values) in enumerate(rows):
        top = row * _ROW
        parts.append(f'<text x="0" y="{top + 11}">{escape(label)}</text>')
        for i in range(count):
            first, end = edges[i], edges[i + 1]
            there = [value for value in values[first:end] if value is not None]
            if not there:
                continue
            share = sum(value < 0 for value in there) / len(there)
            told = f"steps {steps[first]} to {steps[end - 1]}: {share:.0%} of {len(there)} below 0"
            parts.append(
                f'<rect class="strip" x="{i * WIDTH / count:.2f}" y="{top + _HEAD}" '
                f'width="{WIDTH / count:.2f}" height="{_ROW - _HEAD - 3}" '
                f'fill-opacity="{0.08 + 0.92 * share:.3f}"><title>{escape(label)}, {told}</title>'
                "</rect>"
            )
    parts.append(
        f'<text x="0" y="{height - 4}">step {steps[0]}</text>'
        f'<text class="end" x="{WIDTH}" y="{height - 4}">{steps[-1]}</text>'
    )
    told = "; ".join(f"{label} {share_below(values)}" for label, values in rows)
    return Html(
        f"<figure><figcaption>{escape(title)} <small>the darker, the more</small></figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}: '
        f'{escape(told)}">{"".join(parts)}</svg></figure>'
    )


def share_below(values: Column) -> str:
    """Return the share of the numbers below 0, in per cent."""
    there = [value for value in values if value is not None]
    return f"{sum(value < 0 for value in there) / len(there):.0%}" if there else "–"


def bar(title: str, items: Sequence[tuple[str, float, str]], unit: str) -> Html:
    """Return one bar in parts, from (label, amount, colour)."""
    total = sum(amount for _, amount, _ in items) or 1.0
    parts, start = [], 0.0
    for label, amount, colour in items:
        width = WIDTH * amount / total
        told = f"{label}: {number(amount)} {unit}, {amount / total:.0%}"
        parts.append(
            f'<rect class="{colour}" x="{start:.2f}" y="0" width="{width:.2f}" height="34">'
            f"<title>{escape(told)}</title></rect>"
        )
        start += width
    told = ", ".join(f"{label} {amount / total:.0%}" for label, amount, _ in items)
    keys = legend([(f"{label} {amount / total:.0%}", colour) for label, amount, colour in items])
    return Html(
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {WIDTH} 34" '
        f'role="img" aria-label="{escape(title)}: {escape(told)}">{"".join(parts)}</svg>'
        f"{keys}</figure>"
    )
