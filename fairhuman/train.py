"""Train SDXL on the whole image, the faces and the hands at once.

deepspeed fairhuman/train.py --config FILE [section.key=value …]
"""

from __future__ import annotations

import argparse
import errno
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch.distributed as dist

from fairhuman.common.distributed import rank
from fairhuman.config import Config, load_config
from fairhuman.errors import OutputError, UserError
from fairhuman.log import step_record
from fairhuman.runtime import Stop, init_distributed, quiet

if TYPE_CHECKING:
    from fairhuman.run import Run


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line and train; returns the exit code (2: a mistake to be mended)."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config", required=True, help="a YAML file; see configs/")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # from the launcher
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    args = parser.parse_args(argv)
    try:
        config = load_config(args.config, args.overrides)
        quiet()
        train(config, args.overrides)
    except UserError as error:
        if rank() == 0 or isinstance(error, OutputError):
            print(error, file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(f"{error.filename or config.train.output_dir}: the disk is full", file=sys.stderr)
        return 2
    return 0


def train(
    config: Config,
    overrides: Sequence[str] = (),
    prepare: Callable[[Run], None] | None = None,
) -> bool:
    """Train as the config says, to the end or until someone asks to stop.

    Args:
        config: the run's.
        overrides: those of the command line, for the record.
        prepare: called once the run is built, before its first step; not where the run is
            finished already, and nothing is done.

    Returns:
        Whether the end was reached.
    """
    from fairhuman.resume import find_start
    from fairhuman.run import Run

    device = init_distributed()
    stop = Stop().install()
    start = find_start(config)
    if start.finished:
        if rank() == 0:
            print("\n".join(start.farewell(config)))
        dist.destroy_process_group()
        return True
    run = Run(config, device, overrides, start)
    if prepare:
        prepare(run)
    progress, laps = run.progress, run.step.laps
    while progress.step < config.train.steps:
        started = time.perf_counter()
        laps.start()
        lr = run.lr()
        batches = next(run.batches)
        laps.lap("data")
        losses, balance = run.step(batches)
        progress = replace(
            progress,
            step=progress.step + 1,
            samples_seen=progress.samples_seen + run.global_batch,
            skipped=progress.skipped + balance.skipped,
        )
        run.average(progress.step)
        seconds = time.perf_counter() - started
        record = {"lr": lr, **step_record(run.names, losses, balance), **laps.seconds(seconds)}
        progress = run.write(record, progress, seconds)
        ending = stop.agreed(device)
        best = progress.best and progress.best.step == progress.step
        if ending or best or run.due(config.train.checkpoint_every, progress.step):
            run.save(progress)
        if ending:
            break
    run.finish(progress, stop)
    return progress.step >= config.train.steps


if __name__ == "__main__":
    sys.exit(main())
