"""Which sample comes when, and which random numbers it gets: both without state.

Randomness belongs to the sample, not to the process: it is a function of (seed, epoch, sample).
A run split otherwise over ranks and micro-batches sees the same numbers, and a resumed run goes
on without replaying anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import chain, islice

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Sampler

Draw = tuple[int, int]
"""(epoch, index): the sample `index` as it comes in `epoch`."""


def generator(seed: int, epoch: int, sample: str, purpose: str) -> np.random.Generator:
    """Return the random numbers of one sample in one epoch, for one purpose."""
    key = f"{seed}\0{epoch}\0{sample}\0{purpose}".encode()
    digest = hashlib.blake2b(key, digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """Return the order of `count` samples in an epoch, a function of (seed, epoch)."""
    return generator(seed, epoch, "", "order").permutation(count)


class Order:
    """The endless stream of some samples: position by position, without state.

    An epoch is as many positions as there are samples.

    Args:
        samples: their indices in the data set.
        seed: of the run.
        shows: which of them show a region; needed for `share`.
        share: of the positions that hold such a sample; None, and where there are samples of one
            kind alone, takes all equally.
    """

    def __init__(
        self,
        samples: NDArray[np.int64],
        seed: int,
        shows: NDArray[np.bool_] | None = None,
        share: float | None = None,
    ) -> None:
        self.seed = seed
        self._parts = [np.asarray(samples, dtype=np.int64)]
        self._share: float | None = None
        if share is not None:
            shown = np.asarray(shows, dtype=bool)
            if shown.any() and not shown.all():
                self._share = share
                self._parts = [self._parts[0][~shown], self._parts[0][shown]]
        self._orders: dict[int, tuple[int, np.ndarray]] = {}

    def __getitem__(self, position: int) -> Draw:
        """Return the draw at a position.

        Its epoch counts how often its part of the samples has come before, so that no sample
        comes twice with the same random numbers.
        """
        part, place = 0, position
        if self._share is not None:
            # Evenly spread: after n positions, floor(share n) of them show a region.
            before, after = (int(n * self._share + 1e-9) for n in (position, position + 1))
            part = int(after > before)
            place = before if part else position - before
        members = self._parts[part]
        epoch, index = divmod(place, len(members))
        cached, order = self._orders.get(part, (-1, members))
        if cached != epoch:
            order = permutation(self.seed, epoch, len(members))
            self._orders[part] = (epoch, order)
        return epoch, int(members[order[index]])


class Stream:
    """The endless stream of a data set, one global batch after another, each of one bucket.

    Every bucket has its own `Order`. Which bucket is next follows from how many samples of each
    have come: the one that is furthest behind its share of the data set, so that in the long run
    every sample comes equally often.

    Args:
        buckets: the bucket of each sample, [N] integers.
        seed: of the run.
        shows: which samples show a region, [N]; needed for `share`.
        share: of the samples that show a region, in every bucket that has both kinds.

    Raises:
        ValueError: there is no sample of a kind that the share asks for.
    """

    def __init__(
        self,
        buckets: ArrayLike,
        seed: int,
        shows: ArrayLike | None = None,
        share: float | None = None,
    ) -> None:
        buckets = np.asarray(buckets)
        shown = np.zeros(len(buckets), dtype=bool) if shows is None else np.asarray(shows, bool)
        if share is not None and ((share > 0 and not shown.any()) or (share < 1 and shown.all())):
            raise ValueError(f"there is no sample {'without' if shown.any() else 'with'} a region")
        samples = np.arange(len(buckets))
        if share in (0, 1):
            samples = samples[shown == share]
        # In the order in which the buckets' first samples come.
        _, first, which = np.unique(buckets[samples], return_index=True, return_inverse=True)
        members = [samples[which == bucket] for bucket in np.argsort(first)]
        self.orders = [Order(part, seed, shown[part], share) for part in members]
        self._counts = np.array([len(part) for part in members])

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
