"""A study's outcome as tables: header and rows of text, for Markdown and for the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from fairhuman.common.counted import counted
from fairhuman.evaluation.study.detection import Look
from fairhuman.evaluation.study.line import distance
from fairhuman.evaluation.study.outcome import Outcome, Spread
from fairhuman.report.parts import label


class Table(NamedTuple):
    """A table and what is to be said of it."""

    title: str
    note: str
    header: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """Return it with its heading."""
        lines = [f"## {self.title}", "", self.note, "", _row(self.header)]
        lines.append("| --- " + "| ---: " * (len(self.header) - 1) + "|")
        return "\n".join([*lines, *map(_row, self.rows)])


def tables(found: Outcome) -> list[Table]:
    """Return the tables of an outcome."""
    seeds = len(next(iter(found.results.values())))
    made = [_losses(found, mark, seeds) for mark in found.compared]
    if found.line is not None:
        made.append(_distances(found, seeds))
    made.append(_pairs(found, seeds))
    if found.references:
        made.append(_pictures(found))
    if found.variants:
        made.append(_variants(found))
    made.append(_directions(found))
    if found.scales:
        made.append(_solver(found))
    return made


def changes_note(seeds: int) -> str:
    """Return what `Outcome.change` shows, in a sentence."""
    shown = "Change of the held-out loss since the start, in per cent: lower is better; "
    if seeds == 1:
        return f"{shown}± its standard error over the held-out images. "
    return f"{shown}mean ± standard deviation over {seeds} seeds. "


def _losses(found: Outcome, mark: str, seeds: int) -> Table:
    steps = found.marks[found.reference].steps
    title = f"After {steps} steps of each" if mark == "steps" else "With the same compute"
    note = changes_note(seeds)
    if mark == "steps":
        note += (
            f"Compute is in units of `{found.reference}`'s; time is a step's median on the same "
            "machine, over that of the first arm."
        )
    else:
        note += f"Each arm has about the compute that `{found.reference}` needs for {steps} steps."
    names = [label(name) for name in found.names]
    header = ["arm", "steps", "compute", *names] + (["time"] if mark == "steps" else [])
    first = _time(found, _contenders(found)[0])
    rows = []
    for arm in _contenders(found):
        marks = found.marks[arm]
        row = [arm, str(marks.at(mark))]
        row.append(f"{found.compute(arm, mark):.2f}")
        row += [found.change(arm, mark, name).show() for name in found.names]
        if mark == "steps":
            row.append(f"{_time(found, arm) / first:.2f}")
        rows.append(row)
    return Table(title, note, header, rows)


def _distances(found: Outcome, seeds: int) -> Table:
    regions = found.names[1:]
    rows = []
    for arm in found.results:
        if arm in found.series[found.line or ""]:
            continue
        row = [arm]
        for region in regions:
            mean, error, count = distance(found, arm, region)
            shown = "beyond its ends" if mean is None else f"{mean:+.2f}"
            shown += f" ± {error:.2f}" if error is not None else ""
            row.append(shown if count in (0, seeds) else f"{shown} ({count} of {seeds})")
        rows.append(row)
    note = (
        "How much more the whole image's loss has changed than on the line of "
        f"`{found.line}` where the region has changed as much, in percentage points, after the "
        "same number of steps: below 0 the whole is better than with fixed weights. Seed by "
        "seed, each with its own line; mean ± standard error over "
        f"{counted(seeds, 'seed')}, or over those in which the arm is between the line's ends."
    )
    header = ["arm", *(f"at the gain of the {label(region)}" for region in regions)]
    return Table("Distance from the line of fixed weights", note, header, rows)


def _pairs(found: Outcome, seeds: int) -> Table:
    reference = found.reference
    rows = []
    for mark in found.compared:
        for arm in _contenders(found):
            if arm == reference:
                continue
            row = [f"{arm}, same {mark}"]
            for name in found.names:
                spread, ahead = found.difference(reference, arm, mark, name)
                row.append(f"{spread.show()} ({ahead}/{seeds})")
            rows.append(row)
    note = (
        f"The change of `{reference}` less that of each other arm, seed by seed, in percentage "
        f"points: below 0 `{reference}` is ahead. In brackets the seeds in which it is."
    )
    header = [f"{reference} less", *(label(name) for name in found.names)]
    return Table(f"`{reference}` against each other", note, header, rows)


def _pictures(found: Outcome) -> Table:
    looks = {
        arm: [result.look for result in results if result.look]
        for arm, results in found.results.items()
    }
    looks |= {name: [look] for name, look in found.references.items()}
    columns = [column for column in _SEEN if _values(looks[found.reference], column)]
    rows = [
        [name, *(Spread.of(_values(of, column)).show(column.form) for column in columns)]
        for name, of in looks.items()
    ]
    note = (
        "Pictures of prompts that no model has seen, by each arm's last model; mean ± standard "
        "deviation over seeds. " + " ".join(column.note for column in columns if column.note)
    )
    if len(found.references) > 1:
        note += (
            " The last rows are what to hold them against: the model before, the true drawings, "
            "and those as the model's VAE shows them."
        )
    header = ["pictures of", *(column.name for column in columns)]
    return Table("What can be seen in the pictures", note, header, rows)


class _Column(NamedTuple):
    name: str
    value: Callable[[Look], float | None]
    form: str
    note: str = ""


_SEEN = [
    _Column(
        "confidence, faces",
        lambda look: look.face,
        ".3f",
        "Confidence is mediapipe's, as the paper measures it, 0 where nothing is found.",
    ),
    _Column("confidence, hands", lambda look: look.hand, ".3f"),
    _Column(
        "count, faces",
        lambda look: 100 * look.share.faces if look.share else None,
        ".1f",
        "Count is how well the number that the judge finds agrees with the prompt's, in per cent: "
        "a missing finger and a sixth one count the same.",
    ),
    _Column("count, hands", lambda look: 100 * look.share.hands if look.share else None, ".1f"),
    _Column(
        "count, finger tips", lambda look: 100 * look.share.tips if look.share else None, ".1f"
    ),
]


def _values(looks: Sequence[Look], column: _Column) -> list[float]:
    return [value for look in looks if (value := column.value(look)) is not None]


def _directions(found: Outcome) -> Table:
    rows = []
    for arm, results in found.results.items():
        lengths = [result.early for result in results if result.early is not None]
        cosines = [result.cosine for result in results if result.cosine is not None]
        residuals = [result.residual for result in results if result.residual is not None]
        shown = [
            Spread.of(values).show(form) if values else ""
            for values, form in ((lengths, ".2f"), (cosines, ".4f"))
        ]
        if any(shown):
            rows.append([arm, *shown, f"{max(residuals):.1e}" if cosines and residuals else ""])
    note = (
        "How long the direction is in the first fifth of the steps over what it is later: to Adam, "
        "arms that differ in this differ in their learning rate. Then the median cosine of a "
        "step's direction to the exact MPD direction (alpha = 2) of the same gradients, and the "
        "largest backward error of its weights, where the gradients of every step are known."
    )
    header = ["arm", "length at first", "cosine", "backward error"]
    return Table("Where the steps went", note, header, rows)


def _variants(found: Outcome) -> Table:
    rows = []
    for arm in (found.reference, *found.variants):
        rows.append([arm, *(found.change(arm, "steps", name).show() for name in found.names)])
    note = f"One choice of `{found.reference}` changed at a time; after the same number of steps."
    return Table("Which choices matter", note, ["choice", *(label(n) for n in found.names)], rows)


def _solver(found: Outcome) -> Table:
    rows = [
        [
            f"{scale.factor:g}",
            f"{scale.norm:.1e}",
            f"{scale.cosine:.4f}",
            f"{scale.low:.4f}",
            f"{scale.residual:.1e}",
            f"{scale.own:.1e}",
        ]
        for scale in found.scales
    ]
    note = (
        f"The Gram matrices of a run of `{found.reference}`, with all gradients scaled by a "
        "factor, as a loss in other units, a loss scale or a larger model would. The direction "
        "ought not to change at all. Cosine to it of the direction by scipy's least_squares as "
        "published, and backward errors (1: nothing is solved)."
    )
    header = ["factor", "largest norm", "median cosine", "10th percentile", "backward error"]
    return Table("The published solver", note, [*header, "ours, at most"], rows)


def _contenders(found: Outcome) -> list[str]:
    return [arm for arm in found.results if arm not in found.variants]


def _time(found: Outcome, arm: str) -> float:
    return Spread.of([result.step_s for result in found.results[arm]]).mean or math.nan


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
