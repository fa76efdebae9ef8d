"""Which sample comes when, and which random numbers it gets: both without state.

Randomness belongs to the sample, not to the process: it is a function of (seed, epoch, sample).
A run split otherwise over ranks and micro-batches sees the same numbers, and a resumed run goes
on without replaying anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

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


class StepSampler(Sampler[list[Draw]]):
    """The draws of one rank, an optimizer step at a time, without end.

    All samples of an epoch come before those of the next; a step may hold the end of one epoch
    and the start of another. Step s holds draws s*G to (s+1)*G - 1 of that stream, G the global
    batch, micro-batch by micro-batch and in each rank by rank.
    """

    def __init__(
        self,
        count: int,
        seed: int,
        *,
        batch_size: int,
        micro_batches: int,
        rank: int,
        ranks: int,
        seen: int = 0,
    ) -> None:
        self.count = count
        self.seed = seed
        self.batch_size = batch_size
        self.micro_batches = micro_batches
        self.rank = rank
        self.ranks = ranks
        self.seen = seen
        """Samples of the stream that are behind us, over all ranks."""

    def __iter__(self) -> Iterator[list[Draw]]:
        epoch, order = -1, np.empty(0, dtype=np.int64)
        step = self.batch_size * self.micro_batches * self.ranks
        start = self.seen
        while True:
            draws: list[Draw] = []
            for micro in range(self.micro_batches):
                first = start + (micro * self.ranks + self.rank) * self.batch_size
                for position in range(first, first + self.batch_size):
                    if position // self.count != epoch:
                        epoch = position // self.count
                        order = permutation(self.seed, epoch, self.count)
                    draws.append((epoch, int(order[position % self.count])))
            yield draws
            start += step
