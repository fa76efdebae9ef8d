"""The training loop, from a config to the end of its run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from fairhuman.checkpointing.manifest import Progress
from fairhuman.common.distributed import rank
from fairhuman.common.errors import OutputError, StoppedError, StuckError, UserError
from fairhuman.common.hub import SCHEME
from fairhuman.common.lock import FolderLock
from fairhuman.common.output_folder import claim
from fairhuman.common.unread import outliving_readers
from fairhuman.config import Config
from fairhuman.training.alike import check_alike
from fairhuman.training.metrics_log import step_record
from fairhuman.training.resume import find_start
from fairhuman.training.run import Run, check_before_loading
from fairhuman.training.step import Loaded
from fairhuman.training.stop import Stop
from fairhuman.zero.process_group import init_distributed


def train(
    config: Config,
    overrides: Sequence[str] = (),
    prepare: Callable[[Run], None] | None = None,
) -> bool:
    """Train as the config says, to the end or until someone asks to stop.

    Args:
        config: the run's.
        overrides: those of the command line, for the record.
        prepare: called once the run is built and the start is measured, before its first step;
            not where the run is finished already, and nothing is done.

    Returns:
        Whether the end was reached.

    Raises:
        StuckError: train.max_skips steps in a row were skipped; on every rank, after the
            checkpoint is written.
        StoppedError: a signal came before the first step.
    """
    stop = Stop().install()
    lock: FolderLock | None = None
    try:
        with outliving_readers(stop.unread):
            device = init_distributed(config.train.timeout)
            check_alike(config)
            lock = claim(Path(config.train.output_dir), "train.output_dir", "training")
            return _train(config, device, stop, overrides, prepare)
    except KeyboardInterrupt:
        raise StoppedError(f"Stopped before the first step ({stop.reason})") from None
    finally:
        if lock:
            lock.release()


def _train(
    config: Config,
    device: torch.device,
    stop: Stop,
    overrides: Sequence[str],
    prepare: Callable[[Run], None] | None,
) -> bool:
    family = None
    if config.train.resume.startswith(SCHEME):
        family = check_before_loading(config)  # also before gigabytes are downloaded
    start = find_start(config)
    if start.finished:
        if rank() == 0:
            print("\n".join(start.farewell(config)))
        dist.destroy_process_group()
        return True
    run = Run(config, device, overrides, start, family)
    try:
        run.begin()
        if prepare:
            prepare(run)
        stop.steps = True
        return _loop(run, stop)
    except UserError as error:
        if error.shared:  # all ranks are here: what they have written is not lost
            with suppress(OutputError):  # the first error is the one to show
                run.saver.publish()
        raise
    finally:
        run.close()


def _loop(run: Run, stop: Stop) -> bool:
    config, device = run.config, run.device
    progress, timer = run.progress, run.step.timer
    in_a_row = 0
    coming: list[Loaded] = []

    def load() -> None:
        """Load a step's data; what fails on this rank, all learn of when they agree next."""
        try:
            batches = next(run.batches)
        except UserError as error:
            run.failed = run.failed or error
            run.step.join_load(config.train.gradient_accumulation)
        else:
            coming.append(run.step.load(batches))

    load()
    stop.agreed(device, run.failed)  # no step is taken where a rank has no data
    while progress.step < config.train.total_steps:
        started = time.perf_counter()
        timer.start()
        lr = run.lr()
        last = progress.step + 1 == config.train.total_steps
        losses, balance = run.step(coming.pop(), meanwhile=None if last else load)
        progress = replace(
            progress,
            step=progress.step + 1,
            samples_seen=progress.samples_seen + run.global_batch,
            skipped=progress.skipped + balance.skipped,
        )
        in_a_row = in_a_row + 1 if balance.skipped else 0
        if not balance.skipped:
            run.average(progress.step - progress.skipped)
        timer.wait()
        seconds = time.perf_counter() - started
        record = {"lr": lr, **step_record(run.names, losses, balance), **timer.seconds(seconds)}
        progress = run.write(record, progress, seconds)
        stuck = in_a_row >= config.train.max_skips
        agreed = stop.agreed(device, run.failed, run.saver.writing)
        if run.saver.in_flight and not agreed.writing:
            run.saver.publish()
        ending = agreed.stop or stuck
        best = progress.best and progress.best.step == progress.step
        if ending or best or run.due(config.train.checkpoint_every, progress.step):
            goes_on = not (ending or progress.step == config.train.total_steps)
            run.save(progress, background=config.train.async_save and goes_on)
        if ending:
            break
    problem = too_many_skips(config, progress) if in_a_row >= config.train.max_skips else None
    run.finish(progress, stop, problem)
    return progress.step >= config.train.total_steps


def too_many_skips(config: Config, progress: Progress) -> StuckError:
    """Return why a run ends that has skipped train.max_skips steps in a row, in one line."""
    train, last = config.train, progress.step
    fix = " or train.precision=bf16" if train.precision == "fp16" else ""
    return StuckError(
        f"train.max_skips = {train.max_skips}: the gradients of steps {last - train.max_skips + 1} "
        f"to {last} were not finite, and all of them were skipped; {train.output_dir}'s "
        f"checkpoint of step {last} holds the weights from before. Resume from it, or from an "
        f"earlier one, with a lower optimizer.lr{fix}"
    )
