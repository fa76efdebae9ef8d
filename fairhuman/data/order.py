"""Which sample comes when, and which random numbers it gets: both without state.

Randomness belongs to the sample, not to the process: it is a function of (seed, epoch, sample).
A run split otherwise over ranks and micro-batches sees the same numbers, and a resumed run goes
on without replaying anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import chain, islice
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Sampler

from fairhuman.data.mixture import Mixture, Turns, whole
from fairhuman.data.region_share import attainable, divided

Draw = tuple[int, int]
"""(epoch, index): the sample `index` as it comes in `epoch`."""


def generator(seed: int, epoch: int, sample: str, purpose: str) -> np.random.Generator:
    """Return the random numbers of one sample in one epoch, for one purpose."""
    key = f"{seed}\0{epoch}\0{sample}\0{purpose}".encode()
    digest = hashlib.blake2b(key, digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def permutation(seed: int, epoch: int, count: int, source: int = 0) -> np.ndarray:
    """Return the order of a source's `count` samples, a function of (seed, epoch, source)."""
    return generator(seed, epoch, str(source or ""), "order").permutation(count)


class Part(NamedTuple):
    """Samples that come equally often."""

    source: int
    """Their place in `data.sources`."""
    samples: NDArray[np.int64]
    """Their indices in the data set."""
    weight: Fraction
    """How many positions they have, relative to other parts."""


class Order:
    """The endless stream of some samples: position by position, without state.

    Args:
        kinds: the parts of all samples; or of those that show no region, and of those that do. The
            positions of a kind are divided among its parts by weight.
        seed: of the run.
        share: of the positions that hold a sample of the second kind.
    """

    def __init__(self, kinds: Sequence[Sequence[Part]], seed: int, share: float = 1.0) -> None:
        self.seed = seed
        self._share = share
        self._kinds = kinds
        self._turns = [Turns(whole([part.weight for part in parts])) for parts in kinds]
        self._orders: dict[tuple[int, int], tuple[int, np.ndarray]] = {}

    def __getitem__(self, position: int) -> Draw:
        """Return the draw at a position.

        Its epoch counts how often its part of the samples has come before, so that no sample
        comes twice with the same random numbers.
        """
        kind, place = 0, position
        if len(self._kinds) == 2:
            # Evenly spread: after n positions, floor(share n) of them show a region.
            before, after = (int(n * self._share + 1e-9) for n in (position, position + 1))
            kind = int(after > before)
            place = before if kind else position - before
        which, place = self._turns[kind][place]
        source, samples, _ = self._kinds[kind][which]
        epoch, index = divmod(place, len(samples))
        cached, order = self._orders.get((kind, which), (-1, samples))
        if cached != epoch:
            order = permutation(self.seed, epoch, len(samples), source)
            self._orders[kind, which] = (epoch, order)
        return epoch, int(samples[order[index]])


class Stream:
    """The endless stream of a data set, one global batch after another, each of one bucket.

    Every bucket has its own `Order`. Which bucket is next follows from how many samples of each
    have come: the one that is furthest behind its share of the data set, so that in the long run
    every sample of a source comes equally often.

    Args:
        buckets: the bucket of each sample, [N] integers.
        seed: of the run.
        shows: which samples show a region, [N]; needed for `share`.
        share: of the samples that show a region, in every bucket that has both kinds; where sources
            have shares of their own, as near as these let it be in that bucket.
        sources: the source of each sample, [N]; None: all are of the first.
        mixture: how often the samples of each source come.

    Raises:
        ValueError: there is no sample of a kind that the share asks for, or the sources' own shares
            rule it out.
    """

    def __init__(
        self,
        buckets: ArrayLike,
        seed: int,
        shows: ArrayLike | None = None,
        share: float | None = None,
        sources: ArrayLike | None = None,
        mixture: Mixture | None = None,
    ) -> None:
        buckets = np.asarray(buckets)
        samples = np.arange(len(buckets))
        self._seed, self._share, self._mixture = seed, share, mixture or Mixture()
        self._shown = np.zeros(len(samples), bool) if shows is None else np.asarray(shows, bool)
        self._sources = np.zeros_like(samples) if sources is None else np.asarray(sources)
        self._weigh(samples)
        if share is not None:
            self._check_share(samples)
        if share in (0, 1):
            samples = samples[self._shown == share]
            self._weigh(samples)
        # In the order in which the buckets' first samples come.
        _, first, which = np.unique(buckets[samples], return_index=True, return_inverse=True)
        members = [samples[which == bucket] for bucket in np.argsort(first)]
        self.orders = [self._order(part) for part in members]
        self._counts = _counts([self._weight(part) for part in members])

    def _weigh(self, samples: NDArray[np.int64]) -> None:
        """Set how often a sample of each source comes, where these samples do."""
        counts = np.bincount(self._sources[samples], minlength=len(self._mixture.repeats)).tolist()
        fractions = self._mixture.fractions(counts)
        self._each = [part / (count or 1) for part, count in zip(fractions, counts, strict=True)]

    def _check_share(self, samples: NDArray[np.int64]) -> None:
        share, shown = self._share, self._shown
        assert share is not None
        if (share > 0 and not shown.any()) or (share < 1 and shown.all()):
            raise ValueError(f"there is no sample {'without' if shown.any() else 'with'} a region")
        low, high = attainable(*map(self._by_group, self._kinds(samples)))
        if not low <= Fraction(share) <= high:
            raise ValueError(
                f"the shares of data.sources allow {float(low):.3g} to {float(high):.3g}; change "
                "them, or give sources repeats instead"
            )

    def _order(self, samples: NDArray[np.int64]) -> Order:
        hidden, shown = self._kinds(samples)
        if self._share is None or not (hidden and shown):
            return Order([self._parts(samples)], self._seed)
        weights = self._by_group(hidden), self._by_group(shown)
        found = divided(*weights, self._share)

        def scaled(parts: list[Part], kind: int) -> list[Part]:
            made = []
            for part in parts:
                group = self._mixture.group(part.source)
                both = sum(weight.get(group, Fraction(0)) for weight in weights)
                wanted = both * (found[group] if kind else 1 - found[group])
                made.append(part._replace(weight=part.weight * wanted / weights[kind][group]))
            return [part for part in made if part.weight]

        kinds = scaled(hidden, 0), scaled(shown, 1)
        without, within = (sum(part.weight for part in parts) for parts in kinds)
        return Order(kinds, self._seed, float(within / (without + within)))

    def _kinds(self, samples: NDArray[np.int64]) -> tuple[list[Part], list[Part]]:
        """Return the parts of samples that show no region, and of those that do."""
        shown = self._shown[samples]
        return self._parts(samples[~shown]), self._parts(samples[shown])

    def _parts(self, samples: NDArray[np.int64]) -> list[Part]:
        sources = self._sources[samples]
        members = [(place, samples[sources == place]) for place in np.unique(sources).tolist()]
        return [Part(place, part, len(part) * self._each[place]) for place, part in members]

    def _weight(self, samples: NDArray[np.int64]) -> Fraction:
        return sum((part.weight for part in self._parts(samples)), Fraction(0))

    def _by_group(self, parts: Sequence[Part]) -> dict[int, Fraction]:
        """Return the weight of each group of sources that has samples."""
        found: dict[int, Fraction] = {}
        for part in parts:
            group = self._mixture.group(part.source)
            found[group] = found.get(group, Fraction(0)) + part.weight
        return found

    def taken(self, seen: int, size: int) -> np.ndarray:
        """Return how many samples of each bucket are behind us after `seen` of all.

        Args:
            seen: samples that have come.
            size: of a global batch. After a change of it the buckets' shares of `seen` stay, to
                within a batch.
        """
        taken = np.zeros_like(self._counts)
        while seen > 0:
            taken[self.due(taken, size)] += min(size, seen)
            seen -= size
        return taken

    def due(self, taken: np.ndarray, size: int) -> int:
        """Return the bucket of the next global batch."""
        behind = self._counts * (taken.sum() + size) - taken * self._counts.sum()
        return int(behind.argmax())


def _counts(weights: Sequence[Fraction]) -> NDArray[np.int64]:
    """Return whole numbers in these proportions, rounded where their sum would not fit 31 bits."""
    counts, total = whole(weights), sum(weights)
    if sum(counts) >= 2**31:
        counts = [max(1, round(2**31 * weight / total)) for weight in weights]
    return np.array(counts)


def draws(stream: Stream, *, seen: int, until: int, size: int) -> Iterator[Draw]:
    """Yield what a run draws over all ranks, in order, by global batches.

    Args:
        stream: of the run.
        seen: samples that are behind us.
        until: samples that will have come at its end.
        size: of a global batch.
    """
    sampler = StepSampler(stream, batch_size=size, micro_batches=1, rank=0, ranks=1, seen=seen)
    batches = islice(sampler, max(0, -(-(until - seen) // size)))
    return chain.from_iterable(batches)


class StepSampler(Sampler[list[Draw]]):
    """The draws of one rank, an optimizer step at a time, without end.

    Without a share, all samples of an epoch of a bucket come before those of the next; a step may
    hold the end of one epoch and the start of another. A step holds G draws of one bucket that
    follow each other, G the global batch, micro-batch by micro-batch and in each rank by rank.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        batch_size: int,
        micro_batches: int,
        rank: int,
        ranks: int,
        seen: int = 0,
    ) -> None:
        self.stream = stream
        self.batch_size = batch_size
        self.micro_batches = micro_batches
        self.rank = rank
        self.ranks = ranks
        self.seen = seen
        """Samples of the stream that are behind us, over all ranks."""

    def __iter__(self) -> Iterator[list[Draw]]:
        step = self.batch_size * self.micro_batches * self.ranks
        taken = self.stream.taken(self.seen, step)
        while True:
            bucket = self.stream.due(taken, step)
            order, start = self.stream.orders[bucket], int(taken[bucket])
            draws: list[Draw] = []
            for micro in range(self.micro_batches):
                first = start + (micro * self.ranks + self.rank) * self.batch_size
                draws += [order[first + i] for i in range(self.batch_size)]
            yield draws
            taken[bucket] += step
