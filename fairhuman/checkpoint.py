"""Checkpoints: complete or absent, found, verified, rotated."""

from __future__ import annotations

import functools
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError

from fairhuman import moments
from fairhuman.common.distributed import agreed, on_rank0
from fairhuman.common.files import PARTIAL, remove, sync_path
from fairhuman.common.limited import read_limited, shown
from fairhuman.common.yaml_text import values
from fairhuman.config import Config
from fairhuman.digests import differing, digests, share
from fairhuman.ema import EMA
from fairhuman.errors import ConfigError, OutputError
from fairhuman.layout import layout_of, publish, read_layout
from fairhuman.manifest import (
    MANIFEST,
    Best,
    Manifest,
    Progress,
    Setup,
    incomplete,
    installed,
    read_manifest,
    setup_of,
)
from fairhuman.own_settings import OwnSettings
from fairhuman.reshard import (
    UNFIT,
    OldState,
    check_files,
    check_same_model,
    open_states,
    restore,
)
from fairhuman.settings import read_yaml

FOLDER = "checkpoints"
CONFIG = "config.yaml"
_STEPS = "step-????????"
_TAG = "deepspeed"
_BALANCER = "balancer.pt"
_BEST = "best"
# Far more than they ever have; a config is text, a balancer's state a few numbers per objective.
_LARGEST_CONFIG = _LARGEST_BALANCER = 1 << 20
_OF_RANK = re.compile(r"(?:zero_pp_rank|ema_rank)_([0-9]+)")


def save(
    engine: Any,
    output: Path,
    progress: Progress,
    keep: int,
    balancer: dict[str, Any] | None = None,
    ema: EMA | None = None,
    base: str | None = None,
    config: Config | None = None,
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

    Raises:
        OutputError: a rank could not write.
    """
    folder = _folder(output, progress.step)
    aside = folder.with_name(folder.name + PARTIAL)
    layout = layout_of(engine)
    setup = _setup(engine)
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
                    torch.save(balancer, aside / _BALANCER)
                if config:
                    config.save(aside / CONFIG)

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
            _rotate(output / FOLDER, keep, progress.best, progress.step)

    try:
        on_rank0(begin)
        with _failures(engine) as failed:
            # What is frozen comes from model.pretrained again.
            engine.save_checkpoint(
                str(aside), tag=_TAG, save_latest=False, exclude_frozen_parameters=True
            )
        agreed(lambda: write_own(failed))
        # Only when all have written: safetensors writes to a file of a passing name first, which
        # another rank would take for its own.
        mine = agreed(digest_own)
        parts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, mine)
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
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise OutputError(
            f"{folder}: the checkpoint could not be written{_free(folder)} ({reason}); the "
            "checkpoints before it are whole"
        ) from error


def _free(folder: Path) -> str:
    """Return how much room the disk has, in words; nothing where it does not tell."""
    there = next((path for path in folder.parents if path.exists()), None)
    try:
        return f" with {shutil.disk_usage(there or '/').free / 2**30:.2f} GiB of disk free"
    except OSError:
        return ""


@contextmanager
def _failures(engine: Any) -> Iterator[list[Exception]]:
    """Keep DeepSpeed's failures to write for later: the others wait at its next barrier."""
    failed: list[Exception] = []

    def keeping(work: Callable[..., Any]) -> Callable[..., None]:
        def keep(*args: Any, **kwargs: Any) -> None:
            try:
                work(*args, **kwargs)
            except (OSError, RuntimeError) as error:
                failed.append(error)

        return keep

    writer = engine.checkpoint_engine
    # The last copies DeepSpeed's own scripts into each checkpoint, on rank 0.
    writing = [(writer, "makedirs"), (writer, "save"), (engine, "_copy_recovery_script")]
    for owner, name in writing:
        setattr(owner, name, keeping(getattr(owner, name)))
    try:
        yield failed
    finally:
        for owner, name in writing:
            delattr(owner, name)  # the class's own again


def _own_files(aside: Path, rank: int) -> list[str]:
    """Return the files that this rank wrote: those named after it, and on rank 0 the rest."""
    names = [path.relative_to(aside).as_posix() for path in aside.rglob("*") if path.is_file()]

    def writer(name: str) -> int:
        found = _OF_RANK.search(name)
        return int(found[1]) if found else 0

    return [name for name in names if writer(name) == rank]


def find(output: Path, resume: str, damaged: Collection[Path] = ()) -> Path | None:
    """Return the checkpoint that `train.resume` names, or None to start from the beginning.

    Its contents are not compared with their digests here; see `damage`.

    Args:
        output: the run's folder.
        resume: the config's key.
        damaged: checkpoints that `auto` must not take.

    Raises:
        ConfigError: it is not there or not sound; a run is there that would be overwritten; or
            there are checkpoints and `auto` can take none of them.
    """
    if resume == "auto":
        return _newest_or_none(output, damaged)
    if resume == "none":
        if (output / "metrics.jsonl").exists() or newest(output):
            raise ConfigError(
                f"train.output_dir = {str(output)!r}: holds a run already; set train.resume=auto "
                "to go on with it, or choose another folder"
            )
        return None
    folder = best_target(Path(resume))
    problem = unsound(folder)
    if problem:
        raise ConfigError(f"train.resume = {resume!r}: {problem}")
    last = newest(output)
    if last and (folder.resolve().parent != last.resolve().parent or last.name > folder.name):
        raise ConfigError(
            f"train.resume = {resume!r}: {output} holds a run that went on to {last.name}; "
            "choose another train.output_dir for what follows from here"
        )
    return folder


def newest(output: Path, damaged: Collection[Path] = ()) -> Path | None:
    """Return the newest sound checkpoint of a run that is not among the `damaged`."""
    return next((f for f in folders(output) if f not in damaged and not unsound(f)), None)


def folders(output: Path) -> list[Path]:
    """Return all checkpoints of a run, sound or not, the newest first."""
    return sorted((output / FOLDER).glob(_STEPS), reverse=True)


def unsound(folder: Path) -> str | None:
    """Return why a checkpoint cannot be resumed from, None if nothing is wrong at first sight.

    Looks at names, sizes, the manifest and the other small files; the large ones are not read.
    """
    problem = incomplete(folder)
    if problem:
        return problem
    try:
        read_layout(folder)
        load_balancer(folder)
        config_of(folder)
    except ConfigError as error:
        return f"is broken: {str(error).removeprefix(f'{folder}/')}"
    return None


def damage(folder: Path, rank: int = 0, ranks: int = 1) -> str | None:
    """Return what is wrong with the contents of a checkpoint's files; None too without digests.

    Args:
        folder: a sound one.
        rank: which share of the files to read.
        ranks: how many shares there are.
    """
    manifest = read_manifest(folder)
    if manifest.digests is None:
        return None
    mine = {name: manifest.digests[name] for name in share(manifest.files, rank, ranks)}
    wrong = sorted(differing(folder, mine))
    if not wrong:
        return None
    more = f", and {len(wrong) - 1} more" if wrong[1:] else ""
    return f"is damaged: {shown(wrong[0], plain=True)} is not what was written{more}"


def damage_on_ranks(folder: Path) -> str | None:
    """Return what `damage` finds, each rank reading a share of the files; a collective."""
    mine = agreed(lambda: damage(folder, dist.get_rank(), dist.get_world_size()))
    found: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    return next(filter(None, found), None)


def config_of(folder: Path) -> dict[str, Any] | None:
    """Return the config that a sound checkpoint was made with, None if it does not hold it.

    Raises:
        ConfigError: it is no config.
    """
    path = folder / CONFIG
    if not path.exists():
        return None
    read_limited(path, _LARGEST_CONFIG)
    found: dict[str, Any] = values(read_yaml(path))
    return found


def _newest_or_none(output: Path, damaged: Collection[Path]) -> Path | None:
    found = newest(output, damaged)
    there = folders(output)
    if found is None and there:
        problem = unsound(there[0]) or "is damaged: its contents are not what was written"
        raise ConfigError(
            f"train.resume = 'auto': none of the {len(there)} checkpoints in {output / FOLDER} can "
            f"be resumed from; the newest, {there[0].name}, {problem}. Bring one back from a copy, "
            "or choose another train.output_dir to start from the beginning"
        )
    return found


def best_target(folder: Path) -> Path:
    """Return the checkpoint that a run's own link to its best one leads to; others as they are."""
    if folder.name != _BEST or not folder.is_symlink():
        return folder
    target = os.readlink(folder)
    return folder.with_name(target) if re.fullmatch(r"step-\d{8}", target) else folder


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
    sync_path(link.parent)


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


def load(engine: Any, folder: Path, verify: bool = True) -> bool:
    """Bring parameters, optimizer, schedule and loss scale back; all ranks together.

    In the form in which they were saved (ranks, ZeRO stage, offload, precision) it is bit by
    bit. In another the float32 weights and moments are too, and 8-bit moments are quantised anew.
    The settings of optimizer, schedule and loss scaler stay the engine's own; see `OwnSettings`.

    Args:
        engine: of DeepSpeed.
        folder: a checkpoint.
        verify: whether to compare the contents with their digests first.

    Returns:
        Whether the form was another.

    Raises:
        ConfigError: a file is damaged, or holds another model or optimizer. The same on all ranks.
    """
    problem = on_rank0(lambda: unsound(folder)) or (verify and damage_on_ranks(folder))
    if problem:
        raise ConfigError(f"{folder}: {problem}")
    own, setup = OwnSettings(engine), _setup(engine)
    made = resumable(folder, setup).setup
    old, new = read_layout(folder), layout_of(engine)
    if old is not None and made is not None:
        check_same_model(folder, old, new)
    if old is None or made is None or (made == setup and old == new):
        resharded = False
        _load_as_is(engine, folder, setup.ranks)
    else:
        resharded = True
        agreed(lambda: restore(engine, OldState(folder, old)))
        moments.page(engine.optimizer.optimizer)
        publish(engine)
    agreed(lambda: own.put_back(engine, open_states(folder, 0)["ds_config"]))
    return resharded


def load_balancer(folder: Path) -> dict[str, Any] | None:
    """Return the balancer's state, None if there was none.

    Raises:
        ConfigError: it is no such state: a few small float tensors and counts, by name.
    """
    path = folder / _BALANCER
    if not path.exists():
        return None
    read_limited(path, _LARGEST_BALANCER)
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises anything, from pickle to zip
        raise ConfigError(f"{path}: cannot be read; resume from another checkpoint") from error
    fits = isinstance(state, dict) and all(
        isinstance(name, str) and _is_count_or_numbers(value) for name, value in state.items()
    )
    fits = fits and ("squares" not in state or _is_measured(state))
    if not fits:
        raise ConfigError(f"{path}: is not the state of a balancer; resume from another checkpoint")
    return dict(state)


def _is_count_or_numbers(value: Any) -> bool:
    if torch.is_tensor(value):
        # NaN stands for what was never measured.
        small = value.layout == torch.strided and value.numel() <= 4096
        kind = value.is_floating_point() or value.dtype == torch.bool
        return bool(small and kind and not value.isinf().any())
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 2**53


def _is_measured(state: Mapping[str, Any]) -> bool:
    """Return whether a state is what gradients may have shown; see `Forecast.state_dict`."""
    squares, cosines, since = (state.get(key) for key in ("squares", "cosines", "since"))
    if not (torch.is_tensor(squares) and torch.is_tensor(cosines) and isinstance(since, int)):
        return False
    shaped = squares.ndim == 1 and cosines.shape == (len(squares), len(squares))
    return bool(shaped and not (squares < 0).any() and not (cosines.abs() > 1.001).any())


def _load_as_is(engine: Any, folder: Path, ranks: int) -> None:
    # Opened by all before DeepSpeed does: a rank that failed alone would leave the others waiting.
    agreed(lambda: [open_states(folder, rank) for rank in range(ranks)])
    agreed(lambda: check_files(folder))
    try:
        with redirect_stdout(None):  # some of DeepSpeed's optimizers print here
            frozen = any(not p.requires_grad for p in engine.module.parameters())
            path, _ = engine.load_checkpoint(str(folder), tag=_TAG, load_module_strict=not frozen)
    except UNFIT as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"{folder}: DeepSpeed cannot load it: {first}") from error
    if path is None:
        raise ConfigError(f"{folder}: DeepSpeed found no checkpoint in it")
    moments.page(engine.optimizer.optimizer)


def _setup(engine: Any) -> Setup:
    kinds = type(engine.optimizer.optimizer).__mro__  # the first is not ours, but the library's
    name = next(kind.__name__ for kind in kinds if not kind.__module__.startswith("fairhuman"))
    return setup_of(engine.config, name, dist.get_world_size())


def _publish(aside: Path, folder: Path) -> None:
    """Give a checkpoint its name, now that all its files but the manifest are on the disk."""
    for path in [aside / MANIFEST, *(path for path in aside.rglob("*") if path.is_dir()), aside]:
        sync_path(path)
    remove(folder)  # the same step again, after a resume from an older checkpoint
    os.rename(aside, folder)
    sync_path(folder.parent)


def _folder(output: Path, step: int) -> Path:
    return output / FOLDER / f"step-{step:08d}"


def _rotate(folder: Path, keep: int, best: Best | None, step: int | None = None) -> None:
    """Drop the oldest checkpoints up to a step.

    Those after it were passed over as damaged, and must not count in place of good ones. They are
    dropped when the run has come that far again.
    """
    kept = _folder(folder.parent, best.step) if best else None
    last = _folder(folder.parent, step).name if step is not None else "step-99999999"
    for old in sorted(path for path in folder.glob(_STEPS) if path.name <= last)[:-keep]:
        if old != kept:
            remove(old)
    for partial in folder.glob("step-*" + PARTIAL):
        remove(partial)
