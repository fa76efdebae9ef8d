"""Checkpoints: complete or absent, found, verified, rotated."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from fairhuman.errors import ConfigError, OutputError

FOLDER = "checkpoints"
MANIFEST = "manifest.json"
PARTIAL = ".partial"
_TAG = "deepspeed"


@dataclass(frozen=True)
class Progress:
    """Where a run is. Orders and random numbers follow from it, so there is no more to keep."""

    step: int = 0
    samples_seen: int = 0
    """Over all ranks."""
    skipped: int = 0


def save(engine: Any, output: Path, progress: Progress, keep: int) -> Path:
    """Write OUT/checkpoints/step-NNNNNNNN, drop the oldest; all ranks together.

    Written aside, synced and renamed, so that a folder with that name is always whole. A rank
    that cannot write (a full disk) raises and the launcher ends the run; the checkpoints that
    were there stay.
    """
    folder = output / FOLDER / f"step-{progress.step:08d}"
    aside = folder.with_name(folder.name + PARTIAL)
    first = dist.get_rank() == 0
    if first:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    dist.barrier()
    try:
        engine.save_checkpoint(str(aside), tag=_TAG, save_latest=False)
        dist.barrier()
        if first:
            _finish(aside, folder, progress)
            _rotate(output / FOLDER, keep)
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into RuntimeError
        free = shutil.disk_usage(output).free / 2**30
        shutil.rmtree(aside, ignore_errors=True)
        raise OutputError(
            f"{folder}: the checkpoint could not be written with {free:.2f} GiB of disk free "
            f"({error}); the checkpoints before it are whole"
        ) from error
    dist.barrier()
    return folder


def find(output: Path, resume: str) -> Path | None:
    """Return the checkpoint that `train.resume` names, or None to start anew.

    Raises:
        ConfigError: it is not there or not whole; or a run is there that would be overwritten.
    """
    if resume == "auto":
        return newest(output)
    if resume == "none":
        if (output / "metrics.jsonl").exists() or newest(output):
            raise ConfigError(
                f"train.output_dir = {str(output)!r}: holds a run already; set train.resume=auto "
                "to go on with it, or choose another folder"
            )
        return None
    folder = Path(resume)
    problem = incomplete(folder)
    if problem:
        raise ConfigError(f"train.resume = {resume!r}: {problem}")
    last = newest(output)
    if last and (folder.resolve().parent != last.resolve().parent or last.name > folder.name):
        raise ConfigError(
            f"train.resume = {resume!r}: {output} holds a run that went on to {last.name}; "
            "choose another train.output_dir for what follows from here"
        )
    return folder


def newest(output: Path) -> Path | None:
    """Return the newest whole checkpoint of a run."""
    folders = sorted((output / FOLDER).glob("step-????????"), reverse=True)
    return next((folder for folder in folders if not incomplete(folder)), None)


def incomplete(folder: Path) -> str | None:
    """Return what a checkpoint lacks, or None if every file is there with its size."""
    if not folder.is_dir():
        return "there is no such folder (a checkpoint is OUT/checkpoints/step-NNNNNNNN)"
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError):
        return f"is no checkpoint of FairHuman: {MANIFEST} is missing or broken"
    for name, size in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            return f"is not whole: {name} is missing or has another size than when it was written"
    return None


def read_progress(folder: Path, ranks: int) -> Progress:
    """Return where the checkpoint's run was.

    Raises:
        ConfigError: it was made by another number of ranks.
    """
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if manifest["ranks"] != ranks:
        raise ConfigError(
            f"{folder}: was made by {manifest['ranks']} ranks, this run has {ranks}; start "
            f"{manifest['ranks']} (deepspeed --num_accelerators {manifest['ranks']} …)"
        )
    return Progress(**manifest["progress"])


def load(engine: Any, folder: Path) -> None:
    """Bring parameters, optimizer, schedule and loss scale back, bit by bit."""
    path, _ = engine.load_checkpoint(str(folder), tag=_TAG)
    if path is None:
        raise ConfigError(f"{folder}: DeepSpeed found no checkpoint in it")


def _finish(aside: Path, folder: Path, progress: Progress) -> None:
    files = {
        str(path.relative_to(aside)): path.stat().st_size
        for path in sorted(aside.rglob("*"))
        if path.is_file()
    }
    manifest = {"ranks": dist.get_world_size(), "progress": asdict(progress), "files": files}
    (aside / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    for path in [*aside.rglob("*"), aside]:
        _sync(path)
    if folder.exists():
        shutil.rmtree(folder)  # the same step again, after a resume from an older checkpoint
    os.rename(aside, folder)
    _sync(folder.parent)


def _rotate(folder: Path, keep: int) -> None:
    for old in sorted(folder.glob("step-????????"))[:-keep]:
        shutil.rmtree(old)
    for partial in folder.glob("*" + PARTIAL):
        shutil.rmtree(partial)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
