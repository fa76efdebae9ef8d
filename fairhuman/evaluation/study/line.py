"""How far arms are from the line of fixed weights, at the same gain of a region."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fairhuman.evaluation.study.outcome import Outcome


class Distance(NamedTuple):
    """How much more the whole image's loss has changed than on the line, in percentage points."""

    mean: float | None
    """Over the seeds in which the region's change is between those of the line's ends; below 0 the
    whole is better than with fixed weights. None if there is no such seed."""
    error: float | None
    """Standard error of that mean; None from fewer than two seeds."""
    seeds: int
    """How many there are."""


def distance(found: Outcome, arm: str, region: str, mark: str = "steps") -> Distance:
    """Return an arm's distance from the line, seed by seed at the arm's own change of a region.

    The line is straight between its arms of the same seed: the same data, noise, held-out images.
    """
    assert found.line is not None
    whole = found.names[0]
    values = []
    for index, result in enumerate(found.results[arm]):
        line = [found.results[name][index].changes[mark] for name in found.series[found.line]]
        at = result.changes[mark][region]
        there = _at(at, [end[region] for end in line], [end[whole] for end in line])
        if there is not None:
            values.append(result.changes[mark][whole] - there)
    if not values:
        return Distance(None, None, 0)
    count = len(values)
    error = statistics.stdev(values) / count**0.5 if count > 1 else None
    return Distance(statistics.fmean(values), error, count)


def _at(x: float, xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """Return y at x on the line through points, in the order of x; None beyond its ends."""
    if not min(xs) <= x <= max(xs):
        return None
    order = np.argsort(xs)
    return float(np.interp(x, np.asarray(xs)[order], np.asarray(ys)[order]))
