"""Checkpoints: complete or absent, found, verified, rotated."""

from __future__ import annotations

import os
import shutil
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from fairhuman import moments
from fairhuman.common.distributed import agreed
from fairhuman.ema import EMA
from fairhuman.errors import ConfigError, OutputError
from fairhuman.layout import Layout, layout_of, publish, read_layout
from fairhuman.manifest import (
    Best,
    Manifest,
    Progress,
    Setup,
    incomplete,
    installed,
    read_manifest,
    setup_of,
)
from fairhuman.reshard import OldState, check_files, check_same_model, open_states, restore

FOLDER = "checkpoints"
PARTIAL = ".partial"
_TAG = "deepspeed"
_BALANCER = "balancer.pt"
_BEST = "best"


def save(
    engine: Any,
    output: Path,
    progress: Progress,
    keep: int,
    balancer: dict[str, Any] | None = None,
    ema: EMA | None = None,
    base: str | None = None,
) -> Path:
    """Write OUT/checkpoints/step-NNNNNNNN, drop the oldest but the best; all ranks together.

    Written aside, synced and renamed, so that a folder with that name is always whole. A rank
    that cannot write (a full disk) raises and the launcher ends the run; the checkpoints that
    were there stay.

    Args:
        balancer: its state, tensors and plain values, the same on all ranks.
        ema: the moving average of the weights, where there is one.
        base: digest of the frozen weights, where there are such.
    """
    folder = _folder(output, progress.step)
    aside = folder.with_name(folder.name + PARTIAL)
    first = dist.get_rank() == 0
    layout = layout_of(engine)
    if first:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    dist.barrier()
    try:
        # What is frozen comes from model.pretrained again.
        engine.save_checkpoint(
            str(aside), tag=_TAG, save_latest=False, exclude_frozen_parameters=True
        )
        if ema:
            ema.save(aside)
        dist.barrier()
        if first:
            layout.write(aside)
            if balancer:
                torch.save(balancer, aside / _BALANCER)
            _finish(engine, aside, folder, progress, base)
            mark_best(output, progress.best)
            _rotate(output / FOLDER, keep, progress.best)
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
    folder = folder.resolve() if folder.is_symlink() else folder  # OUT/checkpoints/best
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


def best_kept(output: Path, best: Best | None, metric: str | None) -> Best | None:
    """Return the best so far if it was by this metric, and its checkpoint is in this run.

    It is not where the run goes on in another folder, or from before the best was reached.
    """
    if best is None or best.metric != metric or incomplete(_folder(output, best.step)):
        return None
    return best


def mark_best(output: Path, best: Best | None) -> None:
    """Have OUT/checkpoints/best lead to the best one, or not be there.

    It can be made anew from the newest manifest, which is the record: a run that is killed
    between the checkpoint and the link has the old link, to a checkpoint that still is there.
    """
    link = output / FOLDER / _BEST
    aside = link.with_name(_BEST + PARTIAL)
    if best is None:
        link.unlink(missing_ok=True)
        return
    aside.unlink(missing_ok=True)
    aside.symlink_to(_folder(output, best.step).name)
    os.replace(aside, link)
    _sync(link.parent)


def resumable(folder: Path, setup: Setup) -> Manifest:
    """Return the manifest of a checkpoint that a run of this setup can go on from.

    Raises:
        ConfigError: it was made with another optimizer, or by another number of ranks before
            checkpoints could be resharded.
    """
    manifest = read_manifest(folder)
    made = manifest.setup
    if made is None and manifest.ranks != setup.ranks:
        raise ConfigError(
            f"{folder}: was made by {manifest.ranks} ranks, this run has {setup.ranks}, and the "
            "FairHuman that wrote it did not record what another number needs; start "
            f"{manifest.ranks} (deepspeed --num_accelerators {manifest.ranks} …)"
        )
    if made and made.optimizer != setup.optimizer:
        raise ConfigError(
            f"optimizer.name = {setup.optimizer!r}: {folder} was made with {made.optimizer}, whose "
            f"state it cannot take over; set optimizer.name={made.optimizer}"
        )
    return manifest


def check_base(folder: Path, manifest: Manifest, base: str | None, setup: Setup) -> None:
    """Check that the frozen weights are those that a checkpoint was trained beside.

    Not where it was made in another precision, in which the same weights are other numbers.

    Raises:
        ConfigError: they are others.
    """
    made = manifest.setup
    alike = made is not None and made.precision == setup.precision
    if alike and manifest.base and manifest.base != base:
        raise ConfigError(
            f"model.pretrained: {folder} was trained on another base model of the same shapes; "
            "give the one that the run was started from, or another train.output_dir to start anew"
        )


def load(engine: Any, folder: Path) -> bool:
    """Bring parameters, optimizer, schedule and loss scale back; all ranks together.

    In the form in which they were saved (ranks, ZeRO stage, offload, precision) it is bit by
    bit. In another the float32 weights and moments are too, and 8-bit moments are quantised anew.

    Returns:
        Whether the form was another.

    Raises:
        ConfigError: a file is damaged, or holds another model or optimizer. The same on all ranks.
    """
    setup = _setup(engine)
    made = resumable(folder, setup).setup
    old, new = read_layout(folder), layout_of(engine)
    if old is None or made is None:
        _load_as_is(engine, folder, setup.ranks)
        return False
    check_same_model(folder, old, new)
    if made == setup and old == new:
        _load_as_is(engine, folder, setup.ranks)
        return False
    _reshard(engine, folder, old)
    return True


def load_balancer(folder: Path) -> dict[str, Any] | None:
    """Return the balancer's state, None if there was none."""
    path = folder / _BALANCER
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises anything, from pickle to zip
        raise ConfigError(f"{path}: cannot be read; resume from another checkpoint") from error
    return state


def _load_as_is(engine: Any, folder: Path, ranks: int) -> None:
    # Opened by all before DeepSpeed does: a rank that failed alone would leave the others waiting.
    agreed(lambda: [open_states(folder, rank) for rank in range(ranks)])
    agreed(lambda: check_files(folder))
    try:
        with redirect_stdout(None):  # some of DeepSpeed's optimizers print here
            frozen = any(not p.requires_grad for p in engine.module.parameters())
            path, _ = engine.load_checkpoint(str(folder), tag=_TAG, load_module_strict=not frozen)
    except (RuntimeError, KeyError, ValueError, AssertionError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"{folder}: DeepSpeed cannot load it: {first}") from error
    if path is None:
        raise ConfigError(f"{folder}: DeepSpeed found no checkpoint in it")
    moments.page(engine.optimizer.optimizer)


def _reshard(engine: Any, folder: Path, old: Layout) -> None:
    agreed(lambda: restore(engine, OldState(folder, old)))
    moments.page(engine.optimizer.optimizer)
    publish(engine)


def _setup(engine: Any) -> Setup:
    kinds = type(engine.optimizer.optimizer).__mro__  # the first is not ours, but the library's
    name = next(kind.__name__ for kind in kinds if not kind.__module__.startswith("fairhuman"))
    return setup_of(engine.config, name, dist.get_world_size())


def _finish(engine: Any, aside: Path, folder: Path, progress: Progress, base: str | None) -> None:
    files = {
        str(path.relative_to(aside)): path.stat().st_size
        for path in sorted(aside.rglob("*"))
        if path.is_file()
    }
    Manifest(
        ranks=dist.get_world_size(),
        progress=progress,
        files=files,
        setup=_setup(engine),
        global_batch=engine.train_batch_size(),
        versions=installed(),
        base=base,
    ).write(aside)
    for path in [*aside.rglob("*"), aside]:
        _sync(path)
    if folder.exists():
        shutil.rmtree(folder)  # the same step again, after a resume from an older checkpoint
    os.rename(aside, folder)
    _sync(folder.parent)


def _folder(output: Path, step: int) -> Path:
    return output / FOLDER / f"step-{step:08d}"


def _rotate(folder: Path, keep: int, best: Best | None) -> None:
    kept = _folder(folder.parent, best.step) if best else None
    for old in sorted(folder.glob("step-????????"))[:-keep]:
        if old != kept:
            shutil.rmtree(old)
    for partial in folder.glob("step-*" + PARTIAL):
        shutil.rmtree(partial)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
