"""Figures: means over images, each with its bootstrap interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
METHOD = f"95 %, percentile bootstrap over images, {RESAMPLES} resamples"

# Indices that are drawn at a time: what they need is some 30 MB.
_DRAWN = 1 << 21


@dataclass(frozen=True)
class Figure:
    """One number of a metric."""

    metric: str
    name: str
    value: float | None
    """None where there is nothing to take a mean of."""
    count: int
    """What the mean is taken of: images, or detections."""
    interval: tuple[float, float] | None = None
    """The bootstrap's 95 %; None where there is none, and `note` says why."""
    note: str = ""


@dataclass(frozen=True)
class Measured:
    """What a group of metrics gives."""

    figures: list[Figure]
    per_image: dict[str, list[float]] = field(default_factory=dict)
    """Metric to a value for each image, in their order."""
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Metric to what its numbers depend on."""
    packages: tuple[str, ...] = ()
    """Whose versions they depend on."""


def mean(
    metric: str,
    name: str,
    totals: Sequence[float],
    counts: Sequence[int] | None = None,
    *,
    seed: int = 0,
) -> Figure:
    """Return sum(totals) / sum(counts), with images as what is drawn at random.

    Args:
        metric: the figure's.
        name: the figure's.
        totals: each image's sum [n].
        counts: of what each image's sum is [n], 0 where it has none; None: one each.
        seed: of the resamples.
    """
    sums = np.asarray(totals, dtype=np.float64)
    sizes = np.ones(len(sums)) if counts is None else np.asarray(counts, dtype=np.float64)
    size = int(sizes.sum())
    if not size:
        return Figure(metric, name, None, 0, note="there is none")
    value = float(sums.sum() / size)
    if np.count_nonzero(sizes) < 2:
        return Figure(metric, name, value, size, note="no interval: it is one image's")
    return Figure(metric, name, value, size, _interval(sums, sizes, seed))


def _interval(
    totals: NDArray[np.float64], counts: NDArray[np.float64], seed: int
) -> tuple[float, float]:
    rng = np.random.default_rng(seed)
    size = len(totals)
    at_once = max(1, _DRAWN // size)
    means: list[NDArray[np.float64]] = []
    for start in range(0, RESAMPLES, at_once):
        drawn = rng.integers(0, size, (min(at_once, RESAMPLES - start), size))
        numbers = counts[drawn].sum(axis=1)
        # Where few images have any, a resample can have none, and then it has no mean.
        some = numbers > 0
        means.append(totals[drawn].sum(axis=1)[some] / numbers[some])
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)
