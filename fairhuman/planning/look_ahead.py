"""What is known of a run before anything is started: mistakes, and what it will take."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from fairhuman.common.errors import ConfigError
from fairhuman.common.units import GIB
from fairhuman.config import Config
from fairhuman.data.records import Entry, Problem, Record, check_entries, load_records

HEAD = 8
"""Samples whose files are opened; the run itself opens all of them."""


def check_head(config: Config) -> int:
    """Read metadata.jsonl and the files of its first samples; return how many samples it lists.

    Raises:
        DataError: as the run would, for what is found so early.
        ConfigError: more images are held out than there are.
    """
    listed = 0

    def check(entries: Sequence[Entry]) -> list[Record | Problem]:
        nonlocal listed
        listed = len(entries)
        return check_entries(entries[:HEAD])

    load_records(
        Path(config.data.root),
        config.objectives.regions,
        unannotated=config.data.unannotated,
        columns=config.data.columns,
        conditioned=config.model.conditioned,
        outside=config.data.outside,
        on_error=config.data.on_error,
        check=check,
    )
    if listed <= config.data.validation:
        raise ConfigError(
            f"data.validation = {config.data.validation}: the data set has {listed} images; hold "
            "out fewer"
        )
    return listed


def lines(config: Config, ranks: int, listed: int) -> Iterator[str]:
    """Yield what a run on so many ranks will do and need, as text; sizes are counted in seconds.

    Args:
        config: the run's.
        ranks: its processes, one on each GPU.
        listed: samples of the data set.
    """
    from fairhuman.planning.doctor import summary
    from fairhuman.planning.memory_plan import Sizes, plan_memory
    from fairhuman.training.disk_space import checkpoint_bytes

    train = config.train
    batch = ranks * train.batch_size * train.gradient_accumulation
    trained_on = listed - config.data.validation
    samples = batch * train.steps
    yield summary(config)
    yield (
        f"{train.steps:,} steps of {batch} samples (ranks x train.batch_size x "
        f"train.gradient_accumulation = {ranks} x {train.batch_size} x "
        f"{train.gradient_accumulation}): {samples:,} samples, {samples / trained_on:.3g} epochs "
        f"of {trained_on:,} images"
    )
    sizes = Sizes.of(config)
    plan = plan_memory(config, sizes, ranks)
    yield from plan.lines()
    each = checkpoint_bytes(config, sizes.trained)
    yield (
        f"disk: {each / GIB:.2f} GiB for a checkpoint, {train.keep_checkpoints} kept; "
        f"{_free(Path(train.output_dir)) / GIB:.1f} GiB are free in train.output_dir"
    )


def _free(folder: Path) -> int:
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    return shutil.disk_usage(there).free
