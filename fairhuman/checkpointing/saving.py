"""Writes checkpoints: complete or absent, while training goes on where it may."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist

from fairhuman.checkpointing.manifest import (
    Manifest,
    Progress,
    installed,
)
from fairhuman.checkpointing.own_files import OwnFiles, writes
from fairhuman.checkpointing.rotation import mark_best, rotate
from fairhuman.checkpointing.setup import setup_of_engine
from fairhuman.checkpointing.start_losses import StartLosses
from fairhuman.common.distributed import agreed, gathered, on_rank0
from fairhuman.common.error_text import first_line
from fairhuman.common.errors import OutputError
from fairhuman.common.files import PARTIAL, remove, sync_path
from fairhuman.common.run_folder import (
    BALANCER,
    CHECKPOINTS,
    CONFIG,
    MANIFEST,
    checkpoint_folder,
)
from fairhuman.config import Config
from fairhuman.zero.ema import EMA, average_file, write_average
from fairhuman.zero.host_copy import HostCopies
from fairhuman.zero.protocol import Engine
from fairhuman.zero.shard_map import ShardMap, shard_map_of
from fairhuman.zero.state_files import left_by_deepspeed, save_states


class Uploads(Protocol):
    """Uploads checkpoints in the background."""

    @property
    def uploading(self) -> Path | None:
        """The one that is being uploaded, which must stay."""

    def push_checkpoint(self, folder: Path, steps: int) -> None:
        """Have one uploaded."""


class Saver:
    """Writes a run's checkpoints, OUT/checkpoints/step-NNNNNNNN, one at a time.

    Written aside, synced and renamed, so that a folder with that name is always whole. Where a rank
    cannot write (a full disk), the checkpoints that were there stay. All ranks make the same calls.

    Args:
        engine: of DeepSpeed.
        output: the run's folder.
        keep: how many of the newest stay, in addition to the best.
        ema: the moving average of the weights, where there is one.
        base: digest of the frozen weights, where there are such.
        config: the run's, kept in each checkpoint to tell what a resumed run changes.
        uploads: what uploads each checkpoint that gets its name, on rank 0.
    """

    def __init__(
        self,
        engine: Engine,
        output: Path,
        keep: int,
        *,
        ema: EMA | None = None,
        base: str | None = None,
        config: Config | None = None,
        uploads: Uploads | None = None,
    ) -> None:
        self.engine = engine
        self.output = output
        self.keep = keep
        self.ema = ema
        self.base = base
        self.config = config
        self.uploads = uploads
        self._copies = HostCopies()
        self._in_flight: _InFlight | None = None
        # A disk takes seconds to let go of gigabytes.
        self._dropper = ThreadPoolExecutor(1, "old checkpoints")
        self._dropping: Future[None] | None = None

    @property
    def in_flight(self) -> bool:
        """Whether a checkpoint was begun and is not published; the same on every rank."""
        return self._in_flight is not None

    @property
    def writing(self) -> bool:
        """Whether this rank's thread writes."""
        return self._in_flight is not None and self._in_flight.own.writing

    @property
    def crowded(self) -> bool:
        """Whether this rank's part of the checkpoint in flight found no room for its copy."""
        return self._in_flight is not None and self._in_flight.own.crowded

    def save(
        self,
        progress: Progress,
        balancer: Mapping[str, Any] | None = None,
        start: StartLosses | None = None,
        *,
        background: bool = False,
    ) -> Path:
        """Write a checkpoint, after the one that is in flight; a collective.

        Args:
            progress: where the run is.
            balancer: its state, tensors and plain values, the same on all ranks.
            start: the held-out losses before the first step, where such are measured.
            background: whether to copy the states to the host's memory and return: a thread writes
                them, and `publish` completes the checkpoint. What finds no room there is written
                before this returns.

        Returns:
            The checkpoint's folder, as it is called once it is published.

        Raises:
            OutputError: a rank could not write this one, or the one before.
        """
        self.publish()
        folder = checkpoint_folder(self.output, progress.step)
        aside = folder.with_name(folder.name + PARTIAL)
        own = OwnFiles(folder, aside, self._copies if background else None)
        layout = shard_map_of(self.engine)

        def make() -> None:
            self._finish_dropping()  # of what is aside too
            with writes(folder):
                shutil.rmtree(aside, ignore_errors=True)
                aside.mkdir(parents=True)

        def write_rest(failed: list[Exception]) -> None:
            with writes(folder):
                if failed:
                    raise failed[0]
                if dist.get_rank() == 0:
                    own.include(left_by_deepspeed(aside))
                    own.include(_write_small(aside, layout, balancer, self.config, start))
                if self.ema:
                    own.add(write_average, self.ema.state(), average_file(aside))

        with _dropped_if_unwritten(aside):
            on_rank0(make)
            failed = save_states(self.engine, aside, own.add)
            agreed(lambda: write_rest(failed))
        own.start()
        self._in_flight = _InFlight(folder, aside, progress, own)
        if not background:
            self.publish()
            on_rank0(self._finish_dropping)
        return folder

    def publish(self) -> None:
        """Give the checkpoint in flight its name, when all ranks have written it; a collective.

        Waits for that, and has the oldest dropped meanwhile. Does nothing where none is in flight.

        Raises:
            OutputError: a rank could not write.
        """
        if self._in_flight is None:
            return
        (folder, aside, progress, own), self._in_flight = self._in_flight, None

        def complete(found: Mapping[str, str]) -> None:
            with writes(folder):
                Manifest(
                    ranks=dist.get_world_size(),
                    progress=progress,
                    files={name: (aside / name).stat().st_size for name in sorted(found)},
                    setup=setup_of_engine(self.engine),
                    global_batch=self.engine.train_batch_size(),
                    versions=installed(),
                    base=self.base,
                    digests={name: found[name] for name in sorted(found)},
                ).write(aside)
                _rename(aside, folder)
                mark_best(self.output, progress.best)
            self._finish_dropping()
            held = None
            if self.uploads:
                self.uploads.push_checkpoint(folder, progress.step)
                held = self.uploads.uploading  # it, or one that is older
            folders = self.output / CHECKPOINTS
            self._dropping = self._dropper.submit(
                rotate, folders, self.keep, progress.best, progress.step, held
            )

        with _dropped_if_unwritten(aside):
            parts = gathered(own.finish)
            on_rank0(
                lambda: complete({name: value for part in parts for name, value in part.items()})
            )

    def _finish_dropping(self) -> None:
        dropping, self._dropping = self._dropping, None
        try:
            if dropping:
                dropping.result()
        except OSError as error:
            raise OutputError(
                f"{self.output / CHECKPOINTS}: an old checkpoint could not be removed "
                f"({first_line(error)})"
            ) from error


class _InFlight(NamedTuple):
    """A checkpoint that was begun."""

    folder: Path
    aside: Path
    progress: Progress
    own: OwnFiles


def _write_small(
    folder: Path,
    layout: ShardMap,
    balancer: Mapping[str, Any] | None,
    config: Config | None,
    start: StartLosses | None,
) -> Iterator[Path]:
    """Write what the ranks share; yield the files."""
    yield layout.write(folder)
    if balancer:
        torch.save(balancer, folder / BALANCER)
        yield folder / BALANCER
    if config:
        config.save(folder / CONFIG)
        yield folder / CONFIG
    if start:
        yield start.write(folder)


@contextmanager
def _dropped_if_unwritten(aside: Path) -> Iterator[None]:
    """Remove what there is of a checkpoint where a rank cannot write it."""
    try:
        yield
    except OutputError:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _rename(aside: Path, folder: Path) -> None:
    """Give a checkpoint its name, now that all its files but the manifest are on the disk."""
    for path in [aside / MANIFEST, *(path for path in aside.rglob("*") if path.is_dir()), aside]:
        sync_path(path)
    remove(folder)  # the same step again, after a resume from an older checkpoint
    os.rename(aside, folder)
    sync_path(folder.parent)
