"""Curves of runs: made smooth, and thinned where a run is long."""

from __future__ import annotations

from collections.abc import Sequence

from fairhuman.report.history import Column

MOST = 1000
"""Points of a curve; more cannot be told apart, and would make the page large."""


def window(count: int) -> int:
    """Return over about how many of `count` values a moving average goes; 1 is none."""
    return max(1, count // 25, min(5, count // 4))


def smooth(values: Column, over: int) -> Column:
    """Return the exponential moving average, free of bias at its start; None stays None."""
    alpha = 2 / (over + 1)
    found: Column = []
    total = weight = 0.0
    for value in values:
        if value is None:
            found.append(None)
            continue
        total += alpha * (value - total)
        weight += alpha * (1 - weight)
        found.append(total / weight)
    return found


def spread(count: int, most: int = MOST) -> list[int]:
    """Return at most `most` of the indices below `count`, evenly, the first and last among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})


def thinned(values: Column, most: int = MOST) -> list[int]:
    """Return at most `most` indices: of each stretch of values the last that is there.

    A stretch that is all None keeps one index, so that a curve has a gap there.
    """
    size = -(-len(values) // most)
    kept = []
    for start in range(0, len(values), size):
        inside = range(start, min(start + size, len(values)))
        kept.append(next((i for i in reversed(inside) if values[i] is not None), inside[-1]))
    return kept


def extremes(values: Column, most: int = MOST) -> list[int]:
    """Return indices that keep a curve's peaks: the least and the greatest of each stretch.

    A stretch that is all None keeps one index, so that the curve has a gap there.
    """
    size = -(-2 * len(values) // most)
    if size <= 2:
        return list(range(len(values)))
    kept: set[int] = set()
    for start in range(0, len(values), size):
        inside = range(start, min(start + size, len(values)))
        there = [(value, i) for i in inside if (value := values[i]) is not None]
        kept |= {min(there)[1], max(there)[1]} if there else {start}
    return sorted(kept)


def runs_of(places: Sequence[tuple[float, float] | None]) -> list[list[tuple[float, float]]]:
    """Return the stretches of points between gaps."""
    found: list[list[tuple[float, float]]] = [[]]
    for place in places:
        if place is not None:
            found[-1].append(place)
        elif found[-1]:
            found.append([])
    return [stretch for stretch in found if stretch]
