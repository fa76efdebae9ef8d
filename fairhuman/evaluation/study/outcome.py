"""What came of a study's runs: numbers per arm, over its seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fairhuman.common.errors import UserError
from fairhuman.config import change_keys
from fairhuman.evaluation.study.detection import Look
from fairhuman.evaluation.study.trials import Marks, Trial
from fairhuman.fairness.mpd import solve_mpd
from fairhuman.fairness.solve import cosine
from fairhuman.kernels.bench.published import backward_error, published_weights
from fairhuman.report.history import History, read_run


class Spread(NamedTuple):
    """A mean over seeds and its standard deviation (of the seeds, not of the mean)."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return that of values; the deviation of a single one is NaN."""
        deviation = statistics.stdev(values) if len(values) > 1 else math.nan
        return cls(statistics.fmean(values), deviation)

    def show(self, form: str = "+.2f") -> str:
        """Return it as text."""
        if math.isnan(self.deviation):
            return format(self.mean, form)
        return f"{format(self.mean, form)} ± {format(self.deviation, form.lstrip('+'))}"


@dataclass(frozen=True)
class Result:
    """What one run has come to."""

    arm: str
    seed: int
    changes: dict[str, dict[str, float]]
    """By mark, `steps` and perhaps `compute`, and by objective: 100 (held-out loss / that of the
    start - 1), so that the reduction does not count."""
    step_s: float
    """Median time of an optimizer step, in seconds."""
    cosine: float | None
    """Median cosine of its direction to the exact MPD direction (alpha = 2) of the same gradients;
    None where those were not measured."""
    residual: float | None
    """Largest componentwise backward error of its weights."""
    skipped: int
    early: float | None = None
    """Mean norm of the steps' directions in the first fifth of the run over that of the others."""
    look: Look | None = None
    errors: dict[str, dict[str, float]] = field(default_factory=dict)
    """The standard errors of `changes` over the held-out images."""


@dataclass(frozen=True)
class Outcome:
    """What a study has come to."""

    names: list[str]
    """The objectives."""
    marks: dict[str, Marks]
    forwards: dict[str, float]
    results: dict[str, list[Result]]
    """By arm, in the order of the seeds."""
    variants: list[str]
    reference: str
    compared: list[str]
    """The marks at which arms are compared: `steps`, and perhaps `compute`."""
    series: dict[str, list[str]] = field(default_factory=dict)
    """Arms that belong together, in their order."""
    line: str | None = None
    """The series of fixed weights."""
    references: dict[str, Look] = field(default_factory=dict)
    """What the arms' pictures are to be held against."""
    scales: list[Scale] = field(default_factory=list)

    def change(self, arm: str, mark: str, name: str) -> Spread:
        """Return how far an objective's held-out loss has changed, in per cent.

        With the deviation over the seeds; of one seed, with the standard error over the images.
        """
        results = self.results[arm]
        found = Spread.of([result.changes[mark][name] for result in results])
        if len(results) > 1:
            return found
        return found._replace(deviation=results[0].errors[mark].get(name, math.nan))

    def difference(self, arm: str, other: str, mark: str, name: str) -> tuple[Spread, int]:
        """Return an arm's change less another's, seed by seed, and in how many it is lower."""
        pairs = zip(self.results[arm], self.results[other], strict=True)
        values = [a.changes[mark][name] - b.changes[mark][name] for a, b in pairs]
        return Spread.of(values), sum(value < 0 for value in values)

    def compute(self, arm: str, mark: str) -> float:
        """Return an arm's compute at a mark over the reference's at `steps`."""
        marks, unit = self.marks, self.forwards[self.reference]
        return marks[arm].at(mark) * self.forwards[arm] / (marks[self.reference].steps * unit)


class Scale(NamedTuple):
    """The published solver on the Gram matrices of the reference arm, all gradients scaled."""

    factor: float
    """On the gradients."""
    norm: float
    """Median of the largest gradient norm, after that."""
    cosine: float
    """Median to the exact direction, and the 10th percentile."""
    low: float
    residual: float
    """Median backward error."""
    own: float
    """Largest backward error of our solver."""


def read_result(trials: Sequence[Trial], look: Look | None) -> Result:
    """Read what the finished runs of an arm and a seed have written, the shorter one first.

    Raises:
        UserError: a file is not there, or a loss was never measured.
    """
    changes: dict[str, dict[str, float]] = {}
    errors: dict[str, dict[str, float]] = {}
    for one in trials:
        finished = read_run(one.folder)
        for mark in one.compared:
            step = one.marks.at(mark)
            changes[mark] = _changes(one, finished, step)
            errors[mark] = _errors(finished, step)
    trial = trials[0]
    run = read_run(trial.folder)
    known = trial.config.fairness.mode == "exact"  # the gradients of every step
    cosines = [c for record in run.records if known and (c := direction(record, run.names))]
    residuals = [value for _, value in run.points("solver/residual")]
    return Result(
        arm=trial.arm,
        seed=trial.seed,
        changes=changes,
        step_s=statistics.median(value for _, value in run.points("step_time_s")),
        cosine=statistics.median(cosines) if cosines else None,
        residual=max(residuals) if residuals else None,
        skipped=int(run.records[-1]["skipped"]),
        early=_early(run),
        look=look,
        errors=errors,
    )


def _changes(trial: Trial, run: History, step: int) -> dict[str, float]:
    """Return how far each held-out loss has changed at a step, in per cent."""
    found = {}
    for name in run.names:
        key = f"val/loss/{name}"
        losses = dict(run.points(key))
        for wanted in (0, step):
            if wanted not in losses:
                raise UserError(
                    f"{trial.folder}: {key} was not measured at step {wanted}, or was not finite"
                )
        found[name] = 100 * (losses[step] / losses[0] - 1)
    return found


def _early(run: History) -> float | None:
    lengths = [value for _, value in run.points("grad_norm/update")]
    first = len(lengths) // 5
    later = statistics.fmean(lengths[first:]) if first else 0.0
    return statistics.fmean(lengths[:first]) / later if later else None


def _errors(run: History, step: int) -> dict[str, float]:
    """Return the changes' standard errors over the held-out images, where there are enough."""
    found = {name: dict(run.points(change_keys(name)[1])).get(step) for name in run.names}
    return {name: error for name, error in found.items() if error is not None}


def direction(record: Mapping[str, Any], names: Sequence[str]) -> float | None:
    """Return the cosine of a step's direction to the exact MPD one, by its own gradients.

    None where a gradient was not measured, fewer than two objectives were present, or the step
    was skipped.
    """
    gram, here = gram_of(record, names)
    if gram is None or len(here) < 2:
        return None
    weights = torch.tensor([record[f"weight/{name}"] for name in here], dtype=torch.float64)
    if not weights.any():
        return None
    return cosine(gram, weights, solve_mpd(gram, 2.0).weights)


def gram_of(record: Mapping[str, Any], names: Sequence[str]) -> tuple[Tensor | None, list[str]]:
    """Return the Gram matrix of a step's present objectives, [K, K] float64, and their names."""
    here = [name for name in names if record.get(f"grad_norm/{name}")]
    gram = torch.empty(len(here), len(here), dtype=torch.float64)
    for i, first in enumerate(here):
        for j, second in enumerate(here):
            pair = [f"cosine/{first}_{second}", f"cosine/{second}_{first}"]
            cos = 1.0 if i == j else next((record[k] for k in pair if k in record), None)
            if cos is None:
                return None, here
            gram[i, j] = cos * record[f"grad_norm/{first}"] * record[f"grad_norm/{second}"]
    return (gram, here) if here else (None, here)


def scales(run: History, factors: Sequence[float]) -> list[Scale]:
    """Return how the published solver fares on a run's Gram matrices when gradients are scaled.

    Nothing for a run that has measured no gradients.
    """
    found = [gram_of(record, run.names)[0] for record in run.records]
    grams = [gram for gram in found if gram is not None and len(gram) > 1]
    lines: list[Scale] = []
    for factor in factors if grams else ():
        cosines, residuals, own, norms = [], [], [], []
        for gram in grams:
            A = gram * factor**2
            exact, weights = solve_mpd(A, 2.0), published_weights(A)
            cosines.append(cosine(A, weights, exact.weights))
            residuals.append(backward_error(A, weights))
            own.append(float(exact.residual))
            norms.append(float(A.diagonal().max().sqrt()))
        ranked = sorted(cosines)
        low = ranked[len(ranked) // 10]
        middle = statistics.median
        lines.append(
            Scale(factor, middle(norms), middle(cosines), low, middle(residuals), max(own))
        )
    return lines
