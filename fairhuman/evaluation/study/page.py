"""A study's page, and its plot of the trade-off."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from pathlib import Path

from fairhuman.common.counted import counted
from fairhuman.evaluation.study.outcome import Outcome
from fairhuman.evaluation.study.tables import Table
from fairhuman.report.gallery import gallery
from fairhuman.report.parts import Html, colour, label, page, section, table, tiles
from fairhuman.report.scatter import Curve, Point, scatter

SAME = 0.01
"""Of the span of all points: what is nearer is at one place."""


def study_page(found: Outcome, shown: Iterable[Table], pictures: Path | None, setting: str) -> Html:
    """Return the page.

    Args:
        found: the outcome.
        shown: its tables.
        pictures: the sheet of pictures, if any were drawn.
        setting: what was trained, in a sentence.
    """
    plots = [tradeoff(found, name) for name in found.names[1:]]
    sections = [section("At a glance", tiles(_headlines(found))), section("The trade-off", *plots)]
    for part in shown:
        plain = [text.replace("`", "") for text in (part.title, part.note)]
        rows = [[row[0], *map(_figure, row[1:])] for row in part.rows]
        sections.append(section(plain[0], table(part.header, rows), note=plain[1]))
    if pictures:
        sections.append(section("Pictures", gallery([("the same prompts and seeds", pictures)])))
    return page("Does it help?", sections, lead=setting)


def tradeoff(found: Outcome, name: str) -> Html:
    """Return a region's change over the whole image's, of every arm at the last mark compared."""
    mark = found.compared[-1]
    whole, region = (
        {arm: found.change(arm, mark, objective) for arm in found.results}
        for objective in (found.names[0], name)
    )
    colours = _colours(found)
    points = [
        Point(
            arm,
            whole[arm].mean,
            region[arm].mean,
            _or_zero(whole[arm].deviation),
            _or_zero(region[arm].deviation),
            colours[arm],
        )
        for arm in found.results
    ]
    curves = [
        Curve([(whole[arm].mean, region[arm].mean) for arm in arms], colours[arms[0]])
        for arms in found.series.values()
    ]
    return scatter(
        _joined(points),
        f"{label(name)} against the whole image",
        "held-out loss of the whole image since the start, %",
        f"that of the {label(name)}, %: lower is better",
        curves=curves,
    )


def _colours(found: Outcome) -> dict[str, str]:
    """Return each arm's colour: that of its series, and where there are such, grey for the rest."""
    if not found.series:
        return {arm: colour("", index) for index, arm in enumerate(found.results)}
    colours = dict.fromkeys(found.results, "c-plain")
    for index, arms in enumerate(found.series.values()):
        colours |= dict.fromkeys(arms, colour("", index))
    return colours


def _joined(points: Sequence[Point]) -> list[Point]:
    """Give points at one place one label: arms that take the same steps."""
    spans = [
        max(values) - min(values) for values in zip(*((p.x, p.y) for p in points), strict=True)
    ]
    joined: list[Point] = []
    for point in points:
        for index, other in enumerate(joined):
            apart = (abs(point.x - other.x), abs(point.y - other.y))
            if all(gap <= SAME * span for gap, span in zip(apart, spans, strict=True)):
                both = f"{other.label} = {point.label}"
                joined[index] = dataclasses.replace(other, label=both)
                break
        else:
            joined.append(point)
    return joined


def standalone(figure: Html) -> str:
    """Return a figure's chart as an SVG file of its own."""
    style = (resources.files("fairhuman.report") / "style.css").read_text(encoding="utf-8")
    chart = figure[figure.index("<svg ") : figure.index("</svg>") + len("</svg>")]
    opening, _, rest = chart.partition(">")
    opening = opening.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    ground = '<rect x="0" y="0" width="100%" height="100%" style="fill: var(--card)"/>'
    return f"{opening}><style>{style} svg {{ font-family: sans-serif; }}</style>{ground}{rest}\n"


def _headlines(found: Outcome) -> list[tuple[str, str, str]]:
    arm = found.reference
    seeds = len(found.results[arm])
    each = f"{counted(len(found.results), 'arm')}, {counted(seeds, 'seed')}"
    items = [("runs", str(seeds * len(found.results)), each)]
    for name in found.names:
        change = found.change(arm, "steps", name)
        items.append((label(name), f"{change.show()} %", f"held-out loss, {arm}"))
    return items


def _figure(cell: str) -> Html:
    """Return a number with its spread, which stays on one line."""
    return Html(f'<span class="figure">{escape(cell)}</span>')


def _or_zero(deviation: float) -> float:
    return 0.0 if deviation != deviation else deviation


def as_tree(found: Outcome) -> dict[str, object]:
    """Return an outcome as what JSON can hold."""
    tree: dict[str, object] = dataclasses.asdict(found)
    tree["scales"] = [scale._asdict() for scale in found.scales]
    return tree
