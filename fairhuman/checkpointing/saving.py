"""Writes checkpoints: complete or absent, and no more than are kept."""

from __future__ import annotations

import functools
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError

from fairhuman.checkpointing.manifest import (
    Best,
    Manifest,
    Progress,
    installed,
)
from fairhuman.checkpointing.setup import setup_of_engine
from fairhuman.checkpointing.start_losses import StartLosses
from fairhuman.common.digests import digests
from fairhuman.common.distributed import agreed, gathered, on_rank0
from fairhuman.common.error_text import first_line
from fairhuman.common.errors import OutputError
from fairhuman.common.files import PARTIAL, free_bytes, remove, replacing, sync_path
from fairhuman.common.run_folder import (
    BALANCER,
    BEST,
    CHECKPOINTS,
    CONFIG,
    MANIFEST,
    STEPS,
    checkpoint_folder,
)
from fairhuman.common.units import GIB
from fairhuman.config import Config
from fairhuman.zero.ema import EMA
from fairhuman.zero.protocol import Engine
from fairhuman.zero.shard_map import shard_map_of
from fairhuman.zero.state_files import save_states

_OF_RANK = re.compile(r"(?:zero_pp_rank|ema_rank)_([0-9]+)")


def save(
    engine: Engine,
    output: Path,
    progress: Progress,
    keep: int,
    balancer: dict[str, Any] | None = None,
    ema: EMA | None = None,
    base: str | None = None,
    config: Config | None = None,
    start: StartLosses | None = None,
) -> Path:
    """Write OUT/checkpoints/step-NNNNNNNN, drop the oldest but the best; all ranks together.

    Written aside, synced and renamed, so that a folder with that name is always whole. Where a
    rank cannot write (a full disk), the checkpoints that were there stay.

    Args:
        engine: of DeepSpeed.
        output: the run's folder.
        progress: where the run is.
        keep: how many of the newest stay.
        balancer: its state, tensors and plain values, the same on all ranks.
        ema: the moving average of the weights, where there is one.
        base: digest of the frozen weights, where there are such.
        config: the run's, kept in the checkpoint to tell what a resumed run changes.
        start: the held-out losses before the first step, where such are measured.

    Raises:
        OutputError: a rank could not write.
    """
    folder = checkpoint_folder(output, progress.step)
    aside = folder.with_name(folder.name + PARTIAL)
    layout = shard_map_of(engine)
    setup = setup_of_engine(engine)
    writes = functools.partial(_writes, folder)

    def begin() -> None:
        with writes():
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)

    def write_own(failed: list[Exception]) -> None:
        with writes():
            if failed:
                raise failed[0]
            if ema:
                ema.save(aside)
            if dist.get_rank() == 0:
                layout.write(aside)
                if balancer:
                    torch.save(balancer, aside / BALANCER)
                if config:
                    config.save(aside / CONFIG)
                if start:
                    start.write(aside)

    def digest_own() -> dict[str, str]:
        with writes():  # its own files, which are still in this machine's memory
            return digests(aside, _own_files(aside, dist.get_rank()))

    def finish(found: Mapping[str, str]) -> None:
        with writes():
            Manifest(
                ranks=dist.get_world_size(),
                progress=progress,
                files={name: (aside / name).stat().st_size for name in sorted(found)},
                setup=setup,
                global_batch=engine.train_batch_size(),
                versions=installed(),
                base=base,
                digests={name: found[name] for name in sorted(found)},
            ).write(aside)
            _publish(aside, folder)
            mark_best(output, progress.best)
            rotate(output / CHECKPOINTS, keep, progress.best, progress.step)

    try:
        on_rank0(begin)
        failed = save_states(engine, aside)
        agreed(lambda: write_own(failed))
        # Only when all have written: safetensors writes to a file of a passing name first, which
        # another rank would take for its own.
        parts = gathered(digest_own)
        on_rank0(lambda: finish({name: value for part in parts for name, value in part.items()}))
    except OutputError:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return folder


@contextmanager
def _writes(folder: Path) -> Iterator[None]:
    """Turn what a disk says into an OutputError."""
    try:
        yield
    # torch.save turns a full disk into RuntimeError, safetensors into its own.
    except (OSError, RuntimeError, SafetensorError) as error:
        raise OutputError(
            f"{folder}: the checkpoint could not be written{_free(folder)} ({first_line(error)}); "
            "the checkpoints before it are whole"
        ) from error


def _free(folder: Path) -> str:
    """Return how much room the disk has, in words; nothing where it does not tell."""
    try:
        return f" with {free_bytes(folder) / GIB:.2f} GiB of disk free"
    except OSError:
        return ""


def _own_files(aside: Path, rank: int) -> list[str]:
    """Return the files that this rank wrote: those named after it, and on rank 0 the rest."""
    names = [path.relative_to(aside).as_posix() for path in aside.rglob("*") if path.is_file()]

    def writer(name: str) -> int:
        found = _OF_RANK.search(name)
        return int(found[1]) if found else 0

    return [name for name in names if writer(name) == rank]


def mark_best(output: Path, best: Best | None) -> None:
    """Have OUT/checkpoints/best lead to the best one, or not be there.

    It can be made again from the newest manifest, which is the record: a run that is killed
    between the checkpoint and the link has the old link, to a checkpoint that still is there.
    """
    link = output / CHECKPOINTS / BEST
    if best is None:
        link.unlink(missing_ok=True)
        return
    with replacing(link, sync=False) as aside:  # to sync a link is to sync what it leads to
        aside.symlink_to(checkpoint_folder(output, best.step).name)
    sync_path(link.parent)


def _publish(aside: Path, folder: Path) -> None:
    """Give a checkpoint its name, now that all its files but the manifest are on the disk."""
    for path in [aside / MANIFEST, *(path for path in aside.rglob("*") if path.is_dir()), aside]:
        sync_path(path)
    remove(folder)  # the same step again, after a resume from an older checkpoint
    os.rename(aside, folder)
    sync_path(folder.parent)


def rotate(folder: Path, keep: int, best: Best | None, step: int | None = None) -> None:
    """Drop the oldest checkpoints up to a step.

    Those after it were passed over as damaged, and must not count in place of good ones. They are
    dropped when the run has come that far again.
    """
    kept = checkpoint_folder(folder.parent, best.step) if best else None
    last = checkpoint_folder(folder.parent, step).name if step is not None else "step-99999999"
    for old in sorted(path for path in folder.glob(STEPS) if path.name <= last)[:-keep]:
        if old != kept:
            remove(old)
    for partial in folder.glob("step-*" + PARTIAL):
        remove(partial)
