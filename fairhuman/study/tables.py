"""A study's outcome as tables: header and rows of text, for Markdown and for the page alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from fairhuman.report.parts import label
from fairhuman.study.outcome import Outcome, Spread
from fairhuman.study.small import Share


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
    made = [_losses(found, "steps", seeds), _losses(found, "compute", seeds), _pairs(found, seeds)]
    if any(result.found for results in found.results.values() for result in results):
        made.append(_pictures(found))
    if found.variants:
        made.append(_variants(found))
    if found.scales:
        made.append(_solver(found))
    return made


def _losses(found: Outcome, mark: str, seeds: int) -> Table:
    steps = found.marks[found.reference].steps
    title = f"After {steps} steps of each" if mark == "steps" else "With the same compute"
    note = (
        "Change of the held-out loss since the start, in per cent: lower is better; mean ± "
        f"standard deviation over {seeds} seeds. "
    )
    if mark == "steps":
        note += (
            f"Compute is in units of `{found.reference}`'s; time is a step's median on the same "
        )
        note += "machine, over that of the first arm."
    else:
        note += f"Each arm has about the compute that `{found.reference}` needs for {steps} steps."
    names = [label(name) for name in found.names]
    header = ["arm", "steps", "compute", *names] + (["time"] if mark == "steps" else [])
    first = _time(found, _contenders(found)[0])
    rows = []
    for arm in _contenders(found):
        marks = found.marks[arm]
        row = [arm, str(marks.steps if mark == "steps" else marks.compute)]
        row.append(f"{found.compute(arm, mark):.2f}")
        row += [found.change(arm, mark, name).show() for name in found.names]
        if mark == "steps":
            row.append(f"{_time(found, arm) / first:.2f}")
        rows.append(row)
    return Table(title, note, header, rows)


def _pairs(found: Outcome, seeds: int) -> Table:
    reference = found.reference
    rows = []
    for mark in ("steps", "compute"):
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
    rows = []
    for arm, results in found.results.items():
        shares = [result.found for result in results if result.found]
        if shares:
            rows.append([arm, *_shares(shares)])
    for name, share in found.ceilings.items():
        rows.append([name, *_shares([share])])
    note = (
        "In pictures of prompts that no model has seen, by each arm's last model: how well the "
        "faces, hands and finger tips that the judge finds agree in number with those that the "
        "prompt tells of, in per cent (mean ± standard deviation over seeds); a missing finger and "
        "a sixth one count alike. The last rows are the true drawings, and those as the model's "
        "VAE can show them: no arm can do better."
    )
    return Table("What can be found in the pictures", note, ["pictures of", *_FOUND], rows)


_FOUND = ["faces", "hands", "finger tips"]


def _shares(shares: Sequence[Share]) -> list[str]:
    return [
        Spread.of([100 * getattr(share, part) for share in shares]).show(".1f")
        for part in ("faces", "hands", "tips")
    ]


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
