"""The samples of a run: read and checked by all ranks together, split, cached, in their order."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from fairhuman.checkpointing.manifest import Progress
from fairhuman.common.errors import ConfigError
from fairhuman.config import Config
from fairhuman.data import cache_fill as caching
from fairhuman.data import dataset
from fairhuman.data.buckets import Size, frame
from fairhuman.data.cache import Cache
from fairhuman.data.dataset import Batch, People
from fairhuman.data.index.load import load
from fairhuman.data.index.records import Records
from fairhuman.data.index.tokens import caption_tokens
from fairhuman.data.mixture import Mixture
from fairhuman.data.order import StepSampler, Stream, draws
from fairhuman.data.workers import from_workers
from fairhuman.models.families.protocol import Family
from fairhuman.training.length import with_steps
from fairhuman.training.split import split
from fairhuman.training.validation import EPOCH, still


class RunData:
    """The records that a run trains on and those that it holds out; a collective.

    Args:
        config: the run's.
        progress: where it starts; None: at the beginning.

    Raises:
        DataError: the data set cannot be used.
        ConfigError: it has not what the config asks for.
    """

    def __init__(self, config: Config, progress: Progress | None = None) -> None:
        self.usable, self.left_out = load(config)
        self.split = split(self.usable, config)
        self.trained, self.held_out = self.split.trained, self.split.held_out
        _check_best(self.held_out, config)
        self.stream = _stream(self.trained, config)
        self.global_batch = (
            config.train.batch_size * config.train.gradient_accumulation * dist.get_world_size()
        )
        self.config = with_steps(config, self.split.epoch, self.global_batch, progress)
        """The run's, in which train.steps is known."""
        self._epochs = config.train.epochs
        self._cache: Cache | None = None
        self._long_captions: list[str] = []

    def encode(
        self,
        family: Family,
        progress: Progress,
        device: torch.device,
        say: Callable[[str], None] | None,
    ) -> None:
        """Have all that the run will ask for in `data.cache`, if there is one; a collective.

        Before that, `family` learns how long the captions are.

        Args:
            family: loaded.
            progress: where the run starts.
            device: where its encoders go for that time.
            say: told what is built; None on all ranks but one.
        """
        config = self.config
        counts = caption_tokens(self.usable, family)
        self._long_captions = family.fit_captions(counts.tolist())
        if config.data.cache is None:
            return
        self._cache = caching.open_cache(
            Path(config.data.cache),
            config.data.cache_precision,
            self.usable,
            family,
            config.data.check,
        )
        coming = draws(
            self.stream,
            seen=progress.samples_seen,
            until=progress.samples_seen
            + (config.train.total_steps - progress.step) * self.global_batch,
            size=self.global_batch,
        )
        wanted = [caching.Wanted(self._people(family), coming)]
        if config.train.validate_every:
            measured = self.measured(family)
            wanted.append(
                caching.Wanted(measured, [(EPOCH, index) for index in range(len(measured))])
            )
        caching.fill(self._cache, wanted, family, device, workers=config.data.workers, say=say)

    def measured(self, family: Family) -> People:
        """Return what is held out, as it is measured."""
        return still(self.held_out, self.config, family.cell, self._cache)

    def steps(self, family: Family, progress: Progress) -> Generator[list[Batch], None, None]:
        """Yield this rank's micro-batches of each step to come, without end, as `dataset.steps`."""
        train, data = self.config.train, self.config.data
        sampler = StepSampler(
            self.stream,
            batch_size=train.batch_size,
            micro_batches=train.gradient_accumulation,
            rank=dist.get_rank(),
            ranks=dist.get_world_size(),
            seen=progress.samples_seen,
        )
        steps = dataset.steps(self._people(family), sampler, data.workers, data.prefetch)
        return from_workers(steps)

    def lines(self) -> Iterator[str]:
        """Yield what is worth telling of them at the start."""
        for problem in self.left_out:
            yield f"left out: {problem}"
        if self.left_out:
            yield f"{len(self.left_out)} samples left out, {len(self.trained)} trained on"
        if self._epochs is not None:
            steps = self.config.train.total_steps
            yield f"train.epochs = {self._epochs:g}: to step {steps} of {self.global_batch} samples"
        yield from self.split.lines(self.config)
        yield from self._long_captions
        if self.config.data.buckets:
            yield from self._bucket_lines()

    def _people(self, family: Family) -> People:
        config = self.config
        regions, seed = config.objectives.regions, config.train.seed
        return People(self.trained, regions, config.data, seed, family.cell, self._cache)

    def _bucket_lines(self) -> Iterator[str]:
        frames, buckets = _buckets(self.trained, self.config)
        counts = np.bincount(buckets).tolist()
        listed = [
            f"{width} x {height}: {count}"
            for (width, height), count in sorted(zip(frames, counts, strict=True))
        ]
        yield f"samples by bucket: {', '.join(listed)}"
        if small := sum(count < self.global_batch for count in counts):
            yield (
                f"{small} of {len(counts)} buckets have fewer samples than the global batch of "
                f"{self.global_batch}: their steps repeat samples, with other noise; a larger "
                "data.bucket_step makes fewer buckets"
            )


def _check_best(held_out: Records, config: Config) -> None:
    """Check that some held-out image shows what train.keep_best asks for."""
    if config.train.keep_best is None:
        return
    region = config.train.keep_best.split("/")[2]
    if region in config.objectives.regions and not any(
        record.regions[region].boxes or record.regions[region].mask for record in held_out
    ):
        raise ConfigError(
            f"train.keep_best = {config.train.keep_best!r}: none of the {len(held_out)} held-out "
            f"images shows a {region}; raise data.validation, or choose another"
        )


def _buckets(records: Records, config: Config) -> tuple[list[Size], NDArray[np.int64]]:
    """Return the sizes in which records are trained, and the place there of each record's."""
    # A size as one number: rows of two take ten times as long to sort.
    stored, which = np.unique(records.sizes.astype(np.int64) @ [2**32, 1], return_inverse=True)
    frames = [frame(divmod(size, 2**32), config.data) for size in stored.tolist()]
    sizes = sorted(set(frames))
    places = np.array([sizes.index(size) for size in frames])
    return sizes, places[which]


def _stream(records: Records, config: Config) -> Stream:
    _, buckets = _buckets(records, config)
    mixture = Mixture.of(list(config.data.named_sources.values()))
    seed, share = config.train.seed, config.data.region_share
    try:
        return Stream(buckets, seed, records.shows(), share, records.sources(), mixture)
    except ValueError as error:
        raise ConfigError(f"data.region_share = {config.data.region_share}: {error}") from None
