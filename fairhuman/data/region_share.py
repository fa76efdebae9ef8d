"""`data.region_share` next to sources that have shares of their own."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

_GRID = 2**40
"""Steps in which the odds are searched, and to which what is found is rounded."""

Weights = Mapping[int, Fraction]
"""Of the samples of each group, whose part of all samples is fixed."""


def attainable(hidden: Weights, shown: Weights) -> tuple[Fraction, Fraction]:
    """Return the least and the largest share of samples with a region.

    Args:
        hidden: samples that show none; groups without any are left out.
        shown: samples that show one, likewise.
    """
    total = sum(hidden.values()) + sum(shown.values())
    low = sum((weight for group, weight in shown.items() if group not in hidden), Fraction(0))
    high = sum((weight for group, weight in hidden.items() if group not in shown), Fraction(0))
    return low / total, 1 - high / total


def divided(hidden: Weights, shown: Weights, share: float) -> dict[int, Fraction]:
    """Return the part of each group that shows a region, where `share` of all samples does.

    In all groups the odds of a region change by the same factor, as if a region's samples were
    repeated. Where that share cannot be had, it is the nearest that can.

    Args:
        hidden: samples that show none; groups without any are left out.
        shown: samples that show one, likewise.
        share: above 0 and below 1.
    """
    low, high = attainable(hidden, shown)
    aim = min(max(Fraction(share), low), high)
    totals = {g: hidden.get(g, 0) + shown.get(g, Fraction(0)) for g in {**hidden, **shown}}
    if len(totals) == 1:
        return dict.fromkeys(totals, aim)

    def parts(lean: Fraction) -> dict[int, Fraction]:
        found = {}
        for group in totals:
            ours, others = lean * shown.get(group, 0), (1 - lean) * hidden.get(group, 0)
            found[group] = ours / (ours + others) if ours + others else Fraction(group in shown)
        return found

    def reached(lean: Fraction) -> Fraction:
        found = parts(lean)
        return sum((found[group] * totals[group] for group in totals), Fraction(0))

    below, above = 0, _GRID
    while above - below > 1:
        middle = (below + above) // 2
        if reached(Fraction(middle, _GRID)) < aim * sum(totals.values()):
            below = middle
        else:
            above = middle
    found = parts(Fraction(above, _GRID))
    return {group: Fraction(round(part * _GRID), _GRID) for group, part in found.items()}
