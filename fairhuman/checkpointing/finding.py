"""Finds checkpoints, and tells which are whole."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch.distributed as dist

from fairhuman.checkpointing.balancer_state import load_balancer
from fairhuman.checkpointing.from_hub import fetch
from fairhuman.checkpointing.manifest import (
    Best,
    incomplete,
    read_manifest,
)
from fairhuman.common.digests import differing, share
from fairhuman.common.distributed import gathered
from fairhuman.common.errors import ConfigError
from fairhuman.common.files import remove
from fairhuman.common.hub import SCHEME
from fairhuman.common.quoting import shown_key
from fairhuman.common.run_folder import (
    BEST,
    CHECKPOINTS,
    CONFIG,
    METRICS,
    STEPS,
    checkpoint_folder,
)
from fairhuman.common.text_files import read_limited
from fairhuman.common.yaml_text import values
from fairhuman.config.yaml_settings import read_yaml
from fairhuman.zero.shard_map import read_shard_map

# Far more than a config ever has.
_LARGEST_CONFIG = 1 << 20


def find(output: Path, resume: str, damaged: Collection[Path] = ()) -> Path | None:
    """Return the checkpoint that `train.resume` names, or None to start from the beginning.

    One on the hub is downloaded into the run's folder; see `from_hub.fetch`. Its contents are not
    compared with their digests here; see `damage`.

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
        if (output / METRICS).exists() or newest(output):
            raise ConfigError(
                f"train.output_dir = {str(output)!r}: holds a run already; set train.resume=auto "
                "to continue with it, or choose another folder"
            )
        return None
    if resume.startswith(SCHEME):
        folder = fetch(output, resume, newest(output))
    else:
        folder = best_target(Path(resume))
    problem = unsound(folder)
    if problem:
        if resume.startswith(SCHEME):
            remove(folder)
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
    return sorted((output / CHECKPOINTS).glob(STEPS), reverse=True)


def unsound(folder: Path) -> str | None:
    """Return why a checkpoint cannot be resumed from, None if nothing is wrong at first sight.

    Looks at names, sizes, the manifest and the other small files; the large ones are not read.
    """
    problem = incomplete(folder)
    if problem:
        return problem
    try:
        read_shard_map(folder)
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
    return f"is damaged: {shown_key(wrong[0])} is not what was written{more}"


def damage_on_ranks(folder: Path) -> str | None:
    """Return what `damage` finds, each rank reading a share of the files; a collective."""
    found = gathered(lambda: damage(folder, dist.get_rank(), dist.get_world_size()))
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
            f"train.resume = 'auto': none of the {len(there)} checkpoints in "
            f"{output / CHECKPOINTS} can be resumed from; the newest, {there[0].name}, {problem}. "
            "Bring one back from a copy, or choose another train.output_dir to start from the "
            "beginning"
        )
    return found


def best_target(folder: Path) -> Path:
    """Return the checkpoint that a run's own link to its best one leads to; others as they are."""
    if folder.name != BEST or not folder.is_symlink():
        return folder
    target = os.readlink(folder)
    return folder.with_name(target) if re.fullmatch(r"step-\d{8}", target) else folder


def best_kept(output: Path, best: Best | None, metric: str | None) -> Best | None:
    """Return the best so far if it was by this metric, and its checkpoint is in this run.

    It is not where the run continues in another folder, or from before the best was reached.
    """
    if best is None or best.metric != metric or incomplete(checkpoint_folder(output, best.step)):
        return None
    return best
