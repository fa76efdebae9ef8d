"""How a run's samples are divided among its sources: by repeats, or by shares of all samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate

from fairhuman.config import Source


@dataclass(frozen=True)
class Mixture:
    """The sources' repeats and shares, in the order of `data.sources`."""

    repeats: tuple[int, ...] = (1,)
    shares: tuple[Fraction | None, ...] = (None,)

    @classmethod
    def of(cls, sources: Sequence[Source]) -> Mixture:
        """Return what a config's sources ask for; shares of all of them are made to sum to 1."""
        # As they are written: 0.1 is a tenth, and no float near it.
        shares = [None if s.share is None else Fraction(repr(s.share)) for s in sources]
        given = [share for share in shares if share is not None]
        if len(given) == len(shares):
            shares = [share / sum(given) for share in given]
        return cls(tuple(source.repeats for source in sources), tuple(shares))

    def epoch(self, counts: Sequence[int]) -> int:
        """Return the samples of an epoch: those of each source, as often as it is repeated."""
        return sum(count * times for count, times in zip(counts, self.repeats, strict=True))

    def fractions(self, counts: Sequence[int]) -> list[Fraction]:
        """Return each source's part of all samples, given how many it has; they sum to 1."""
        repeated = [
            count * times if share is None else 0
            for count, times, share in zip(counts, self.repeats, self.shares, strict=True)
        ]
        left = 1 - sum(share for share in self.shares if share is not None)
        found = [
            left * Fraction(number, sum(repeated) or 1) if share is None else share
            for number, share in zip(repeated, self.shares, strict=True)
        ]
        return [fraction / sum(found) for fraction in found]

    def group(self, source: int) -> int:
        """Return a number that sources have in common whose part of the samples is fixed together.

        A share fixes that of one source; what is left is that of all sources without one.
        """
        return -1 if self.shares[source] is None else source


class Turns:
    """Endless positions, divided among parts in proportion to whole numbers, without state.

    A part has its due at every position, to within log2 of the number of parts, and exactly after
    as many positions as the weights' sum or a multiple of it.

    Args:
        weights: of the parts, each above 0.
    """

    def __init__(self, weights: Sequence[int]) -> None:
        self._ends = [0, *accumulate(weights)]

    def __getitem__(self, position: int) -> tuple[int, int]:
        """Return the part whose turn it is, and how many turns it has had before."""
        ends = self._ends
        first, end = 0, len(ends) - 1
        while end - first > 1:
            half = (first + end) // 2
            left, both = ends[half] - ends[first], ends[end] - ends[first]
            before, after = position * left // both, (position + 1) * left // both
            if after > before:
                position, end = before, half
            else:
                position, first = position - before, half
        return first, position


def whole(weights: Sequence[Fraction]) -> list[int]:
    """Return the smallest whole numbers that are in the same proportions."""
    scale = math.lcm(*(weight.denominator for weight in weights))
    numbers = [int(weight * scale) for weight in weights]
    common = math.gcd(*numbers)
    return [number // common for number in numbers]
