"""Where a run starts: which checkpoint it resumes from, and what its config changes there."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch.distributed as dist

from fairhuman import checkpointing
from fairhuman.checkpointing import StartLosses
from fairhuman.checkpointing.changes import Changes, changes
from fairhuman.checkpointing.manifest import Best, Manifest, Progress, Setup, setup_of
from fairhuman.common.distributed import on_rank0
from fairhuman.common.errors import ConfigError
from fairhuman.common.files import remove
from fairhuman.common.hub import SCHEME
from fairhuman.common.run_folder import CARD, CHECKPOINTS, FINAL, MANIFEST, REPORT
from fairhuman.config import Config
from fairhuman.data.index.load import load
from fairhuman.training.length import with_steps
from fairhuman.training.split import split
from fairhuman.zero.engine import deepspeed_config


@dataclass(frozen=True)
class Start:
    """From where a run continues; the same on every rank."""

    setup: Setup
    """This run's."""
    folder: Path | None = None
    """The checkpoint; None: the run starts from the beginning."""
    manifest: Manifest | None = None
    progress: Progress = field(default_factory=Progress)
    keeps_balance: bool = True
    """Whether what the checkpoint's balancer measured still holds."""
    losses: StartLosses | None = None
    """What was held out, before the first step; None where it is not known, or not comparable."""
    lines: tuple[str, ...] = ()
    """What there is to say of the checkpoint and of changed settings."""
    finished: bool = False
    """Whether the run has ended and written all that it writes."""

    def farewell(self, config: Config) -> list[str]:
        """Return what to say of a finished run, which is left as it is."""
        train, step = config.train, self.progress.step
        key, value = ("steps", train.steps) if train.epochs is None else ("epochs", train.epochs)
        return [
            f"{train.output_dir}: this run is finished: {step} steps were taken, and train.{key} "
            f"is {value:g}. Nothing was changed; to train longer, raise train.{key}",
            *self.lines,
        ]


def find_start(config: Config) -> Start:
    """Find out where a run starts, before anything of it is loaded or written; a collective.

    Raises:
        ConfigError: the checkpoint cannot be resumed from, or not with this config.
    """
    output = Path(config.train.output_dir)
    setup = setup_of(deepspeed_config(config), config.optimizer.name, dist.get_world_size())
    folder, passed = _choose(config)
    if folder is None:
        return Start(setup)
    epoch = _epoch(config)
    start = on_rank0(functools.partial(_start, config, output, setup, folder, epoch))
    return replace(start, lines=(*passed, *start.lines))


def _epoch(config: Config) -> int:
    """Return the samples of an epoch, where train.epochs counts them; a collective."""
    if config.train.epochs is None:
        return 0
    usable, _ = load(config)
    return split(usable, config).epoch


def _choose(config: Config) -> tuple[Path | None, list[str]]:
    """Return the checkpoint to resume from, and what there is to say of how it was chosen."""
    output, resume = Path(config.train.output_dir), config.train.resume
    damaged: dict[Path, str] = {}
    while True:
        find: Callable[[], Path | None] = functools.partial(
            checkpointing.find, output, resume, list(damaged)
        )
        folder = on_rank0(find)
        if folder is None:
            return None, []
        problem = checkpointing.damage_on_ranks(folder) if config.train.verify_checkpoints else None
        if problem is None:
            break
        if resume.startswith(SCHEME):
            on_rank0(functools.partial(remove, folder))
            raise ConfigError(
                f"train.resume = {resume!r}: {problem}; start again to download it once more, or "
                "resume from another one"
            )
        if resume != "auto":
            raise ConfigError(f"train.resume = {resume!r}: {problem}; resume from another one")
        damaged[folder] = problem
    if resume.startswith(SCHEME):
        return folder, [f"{folder} was downloaded from {resume}"]
    passed = functools.partial(_passed_over, output, resume, folder, damaged)
    return folder, on_rank0(passed)


def _passed_over(output: Path, resume: str, taken: Path, damaged: dict[Path, str]) -> list[str]:
    if resume != "auto":
        return []
    newer = [folder for folder in checkpointing.folders(output) if folder.name > taken.name]
    problems = {folder: damaged.get(folder) or checkpointing.unsound(folder) for folder in newer}
    return [f"passed over {folder}: it {problem}" for folder, problem in problems.items()]


def _start(config: Config, output: Path, setup: Setup, folder: Path, epoch: int) -> Start:
    manifest = checkpointing.resumable(folder, setup)
    train, progress = config.train, manifest.progress
    batch = train.batch_size * train.gradient_accumulation * setup.ranks
    config = with_steps(config, epoch, batch, progress)
    lines = []
    if manifest.digests is None:
        lines.append(
            f"{folder} was written before checkpoints had digests: its contents are not verified"
        )
    old = checkpointing.config_of(folder)
    if old is None:
        lines.append(
            f"{folder} does not hold its config: this run's settings take effect, and what they "
            "change cannot be said"
        )
    changed = changes(old, config) if old is not None else Changes()
    if finished(output, folder, progress, config.train.total_steps):
        said = [f"{change} (has no effect: the run is finished)" for change in changed.found]
        return Start(setup, folder, manifest, progress, lines=tuple(said), finished=True)
    changed.check(folder)
    lines += changed.lines(config, progress)
    losses = checkpointing.load_start(folder)
    best = checkpointing.best_kept(output, progress.best, config.train.keep_best)
    if best and losses is None and _was_scaled(best, config):
        lines.append(
            f"the best so far (step {best.step}) is dropped: {folder} is of before held-out losses "
            "were measured without objectives.scale"
        )
        best = None
    if changed.remeasures:
        best = losses = None
    progress = replace(progress, best=best)
    return Start(setup, folder, manifest, progress, not changed.unbalances, losses, tuple(lines))


def _was_scaled(best: Best, config: Config) -> bool:
    """Return whether a held-out loss of an earlier FairHuman carried a factor."""
    return config.objectives.scale.get(best.metric.split("/")[2], 1.0) != 1.0


def finished(output: Path, folder: Path, progress: Progress, steps: int) -> bool:
    """Return whether a run that has taken its steps has also written what comes after them.

    OUT/final's card and the report are the last, and newer than the checkpoint of the last step.
    """
    inside = folder.resolve().parent == (output / CHECKPOINTS).resolve()
    if progress.step < steps or not inside:
        return False
    try:
        before = (folder / MANIFEST).stat().st_mtime_ns
        after = (output / FINAL / CARD, output / REPORT)
        return all(path.stat().st_mtime_ns >= before for path in after)
    except OSError:
        return False
