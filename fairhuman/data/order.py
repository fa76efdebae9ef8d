"""Which sample comes when, and which random numbers it gets: both without state.

Randomness belongs to the sample, not to the process: it is a function of (seed, epoch, sample).
A run split otherwise over ranks and micro-batches sees the same numbers, and a resumed run goes
on without replaying anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
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
    """The endless stream of draws: position by position, without state.

    An epoch is as many positions as there are samples.

    Args:
        count: of samples.
        seed: of the run.
        shows: which samples show a region; needed for `share`.
        share: of the positions that hold such a sample; None takes all samples alike.

    Raises:
        ValueError: there is no sample of a kind that the share asks for.
    """

    def __init__(
        self,
        count: int,
        seed: int,
        shows: Sequence[bool] | None = None,
        share: float | None = None,
    ) -> None:
        self.count = count
        self.seed = seed
        self.share = share
        self._parts = [np.arange(count)]
        if share is not None:
            shown = np.asarray(shows, dtype=bool)
            self._parts = [np.flatnonzero(~shown), np.flatnonzero(shown)]
            if (share > 0 and not shown.any()) or (share < 1 and shown.all()):
                missing = "without a region" if shown.any() else "with a region"
                raise ValueError(f"there is no sample {missing}")
        self._orders: dict[int, tuple[int, np.ndarray]] = {}

    def __getitem__(self, position: int) -> Draw:
        """Return the draw at a position.

        Its epoch counts how often its part of the data set has come before, so that no sample
        comes twice with the same random numbers.
        """
        part, place = 0, position
        if self.share is not None:
            # Evenly spread: after n positions, floor(share n) of them show a region.
            before, after = (int(n * self.share + 1e-9) for n in (position, position + 1))
            part = int(after > before)
            place = before if part else position - before
        members = self._parts[part]
        epoch, index = divmod(place, len(members))
        cached, order = self._orders.get(part, (-1, members))
        if cached != epoch:
            order = permutation(self.seed, epoch, len(members))
            self._orders[part] = (epoch, order)
        return epoch, int(members[order[index]])


class StepSampler(Sampler[list[Draw]]):
    """The draws of one rank, an optimizer step at a time, without end.

    Without a share, all samples of an epoch come before those of the next; a step may hold the end
    of one epoch and the start of another. Step s holds draws s*G to (s+1)*G - 1 of that stream, G
    the global batch, micro-batch by micro-batch and in each rank by rank.
    """

    def __init__(
        self,
        order: Order,
        *,
        batch_size: int,
        micro_batches: int,
        rank: int,
        ranks: int,
        seen: int = 0,
    ) -> None:
        self.order = order
        self.batch_size = batch_size
        self.micro_batches = micro_batches
        self.rank = rank
        self.ranks = ranks
        self.seen = seen
        """Samples of the stream that are behind us, over all ranks."""

    def __iter__(self) -> Iterator[list[Draw]]:
        step = self.batch_size * self.micro_batches * self.ranks
        start = self.seen
        while True:
            draws: list[Draw] = []
            for micro in range(self.micro_batches):
                first = start + (micro * self.ranks + self.rank) * self.batch_size
                draws += [self.order[first + i] for i in range(self.batch_size)]
            yield draws
            start += step
