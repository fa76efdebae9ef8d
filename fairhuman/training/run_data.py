"""The samples of a run: read and checked by all ranks together, split, cached, in their order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

import torch.distributed as dist

from fairhuman.checkpointing.manifest import Progress
from fairhuman.common.distributed import agreed
from fairhuman.common.errors import ConfigError
from fairhuman.config import Config
from fairhuman.data import cache_fill as caching
from fairhuman.data import dataset
from fairhuman.data.buckets import Size, frame
from fairhuman.data.cache import Cache
from fairhuman.data.dataset import Batch, People
from fairhuman.data.order import StepSampler, Stream, draws
from fairhuman.data.records import Entry, Problem, Record, check_entries, records_of
from fairhuman.data.workers import from_workers
from fairhuman.models.sdxl import SDXL
from fairhuman.training.validation import EPOCH, hold_out, still


class RunData:
    """The records that a run trains on and those that it holds out; a collective.

    Raises:
        DataError: the data set cannot be used.
        ConfigError: it has not what the config asks for.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        records, self.left_out = records_of(config, _check_shared)
        self.trained, self.held_out = hold_out(records, config.data.validation, config.train.seed)
        _check_best(self.held_out, config)
        self.stream = _stream(self.trained, config)
        self.global_batch = (
            config.train.batch_size * config.train.gradient_accumulation * dist.get_world_size()
        )
        self._cache: Cache | None = None
        self._long_captions: list[str] = []

    def encode(self, sdxl: SDXL, progress: Progress, say: Callable[[str], None] | None) -> None:
        """Have all that the run will ask for in `data.cache`, if there is one; a collective.

        Before that, `sdxl` learns how long the captions are.

        Args:
            sdxl: loaded.
            progress: where the run starts.
            say: told what is built; None on all ranks but one.
        """
        config = self.config
        records = [*self.trained, *self.held_out]
        self._long_captions = sdxl.fit_captions([record.text for record in records])
        if config.data.cache is None:
            return
        self._cache = caching.open_cache(Path(config.data.cache), records, sdxl)
        coming = draws(
            self.stream,
            seen=progress.samples_seen,
            until=progress.samples_seen + (config.train.steps - progress.step) * self.global_batch,
            size=self.global_batch,
        )
        wanted = [caching.Wanted(self._people(sdxl), coming)]
        if config.train.validate_every:
            measured = self.measured(sdxl)
            wanted.append(
                caching.Wanted(measured, [(EPOCH, index) for index in range(len(measured))])
            )
        caching.fill(self._cache, wanted, sdxl, workers=config.data.workers, say=say)

    def measured(self, sdxl: SDXL) -> People:
        """Return what is held out, as it is measured."""
        return still(self.held_out, self.config, sdxl.cell, self._cache)

    def steps(self, sdxl: SDXL, progress: Progress) -> Generator[list[Batch], None, None]:
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
        steps = dataset.steps(self._people(sdxl), sampler, data.workers, data.prefetch)
        return from_workers(steps)

    def lines(self) -> Iterator[str]:
        """Yield what is worth telling of them at the start."""
        for problem in self.left_out:
            yield f"left out: {problem}"
        if self.left_out:
            yield f"{len(self.left_out)} samples left out, {len(self.trained)} trained on"
        yield from self._long_captions
        if self.config.data.buckets:
            yield from self._bucket_lines()

    def _people(self, sdxl: SDXL) -> People:
        config = self.config
        regions, seed = config.objectives.regions, config.train.seed
        return People(self.trained, regions, config.data, seed, sdxl.cell, self._cache)

    def _bucket_lines(self) -> Iterator[str]:
        counts: Counter[Size] = Counter(
            frame(record.size, self.config.data) for record in self.trained
        )
        listed = [
            f"{width} x {height}: {count}" for (width, height), count in sorted(counts.items())
        ]
        yield f"samples by bucket: {', '.join(listed)}"
        if small := sum(count < self.global_batch for count in counts.values()):
            yield (
                f"{small} of {len(counts)} buckets have fewer samples than the global batch of "
                f"{self.global_batch}: their steps repeat samples, with other noise; a larger "
                "data.bucket_step makes fewer buckets"
            )


def _check_shared(entries: Sequence[Entry]) -> list[Record | Problem]:
    """Open the files of the data set, each on one rank, and tell all ranks."""
    ranks = dist.get_world_size()
    parts: list[list[Record | Problem]] = [[] for _ in range(ranks)]
    mine = agreed(lambda: check_entries(entries[dist.get_rank() :: ranks]))
    dist.all_gather_object(parts, mine)
    merged: list[Record | Problem] = []
    for index in range(len(entries)):
        merged.append(parts[index % ranks][index // ranks])
    return merged


def _check_best(held_out: Sequence[Record], config: Config) -> None:
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


def _stream(records: Sequence[Record], config: Config) -> Stream:
    shows = [any(a.boxes or a.mask for a in record.regions.values()) for record in records]
    frames = [frame(record.size, config.data) for record in records]
    try:
        return Stream(frames, config.train.seed, shows, config.data.region_share)
    except ValueError as error:
        raise ConfigError(f"data.region_share = {config.data.region_share}: {error}") from None
