"""What is known of a run before anything is started: mistakes, and what it will take."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fairhuman.common.files import free_bytes
from fairhuman.common.units import GIB
from fairhuman.config import Config
from fairhuman.data.index.load import joined, open_listings
from fairhuman.data.index.records import SourceRecords
from fairhuman.data.records import Problem, check_entries, refuse_unusable
from fairhuman.training.length import with_steps
from fairhuman.training.sample_controls import check_controls
from fairhuman.training.split import Split, split

HEAD = 8
"""Samples whose files are opened; the run itself opens all of them."""


def check_head(config: Config) -> Split:
    """Read the rows of the data sets and the files of their first samples.

    Returns:
        What is trained on and held out if none of the other samples is left out.

    Raises:
        DataError: as the run would, for what is found so early.
    """
    parts = []
    for section, listing in open_listings(config).items():
        rows = np.flatnonzero(np.asarray(listing.column("problem").is_null()))
        checked = check_entries([listing.entry(int(row)) for row in rows[:HEAD]])
        found = [problem for problem in checked if isinstance(problem, Problem)]
        problems = [*listing.problems(), *found]
        refuse_unusable(listing.store, len(rows), problems, config.data.on_error, section)
        parts.append(SourceRecords(listing, rows, np.zeros((len(rows), 2), np.int32)))
    listed = split(joined(parts), config)
    check_controls(config)
    return listed


def of_length(config: Config, ranks: int, listed: Split) -> Config:
    """Return a config in which train.steps is known, as if none of the samples were left out.

    Args:
        config: the run's.
        ranks: its processes, one on each GPU.
        listed: samples of the data sets.

    Raises:
        ConfigError: as the run would.
    """
    return with_steps(config, listed.epoch, _batch(config, ranks))


def _batch(config: Config, ranks: int) -> int:
    return ranks * config.train.batch_size * config.train.gradient_accumulation


def lines(config: Config, ranks: int, listed: Split) -> Iterator[str]:
    """Yield what a run on so many ranks will do and need, as text; sizes are counted in seconds.

    Args:
        config: the run's, of known length.
        ranks: its processes, one on each GPU.
        listed: samples of the data sets.
    """
    from fairhuman.planning.doctor import summary
    from fairhuman.planning.memory_plan import Sizes, plan_memory
    from fairhuman.training.disk_space import checkpoint_bytes

    train = config.train
    batch = _batch(config, ranks)
    samples = batch * train.total_steps
    yield summary(config)
    yield (
        f"{train.total_steps:,} steps of {batch} samples (ranks x train.batch_size x "
        f"train.gradient_accumulation = {ranks} x {train.batch_size} x "
        f"{train.gradient_accumulation}): {samples:,} samples, {samples / listed.epoch:.3g} epochs "
        f"of {listed.epoch:,} {'images' if len(listed.trained) == listed.epoch else 'samples'}"
    )
    yield from listed.lines(config)
    sizes = Sizes.of(config)
    plan = plan_memory(config, sizes, ranks)
    yield from plan.lines()
    each = checkpoint_bytes(config, sizes.trained)
    yield (
        f"disk: {each / GIB:.2f} GiB for a checkpoint, {train.keep_checkpoints} kept; "
        f"{free_bytes(Path(train.output_dir)) / GIB:.1f} GiB are free in train.output_dir"
    )
