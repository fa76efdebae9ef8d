"""How long a run's steps take: a few are taken with its config, its data and its ranks.

`fairhuman train --dry-run --measure` starts it under DeepSpeed's launcher, as
deepspeed --module fairhuman.planning.trial_run --config FILE --out JSON [section.key=value …]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch

from fairhuman.common.distributed import rank
from fairhuman.common.exit_code import exit_code
from fairhuman.common.files import write_text
from fairhuman.common.quiet import quiet
from fairhuman.config import Config, load_config

WARM_UP = 2
MEASURED = 6
REFRESH = 2
"""Steps from one measurement of the gradients to the next, so that both kinds are timed."""


@dataclass(frozen=True)
class Trial:
    """Seconds that parts of a run take."""

    steps: list[float]
    """Each step, of which every REFRESH-th measures the gradients where the mode does so at all."""
    validation: float | None
    """Measuring the held-out losses once; None: the run does not."""
    samples: float | None
    """Drawing the sample pictures once; None: the run does not."""

    def step(self, config: Config) -> float:
        """Return the mean time of a step of a run."""
        every = config.fairness.every
        if not config.fairness.solves or every < REFRESH:
            return median(self.steps)
        kinds = sorted(median(self.steps[first::REFRESH]) for first in range(REFRESH))
        return (kinds[-1] + (every - 1) * kinds[0]) / every

    def lines(self, config: Config) -> Iterator[str]:
        """Yield what a whole run will take, of known length."""
        train, step = config.train, self.step(config)
        parts = {f"{train.total_steps:,} steps of {step:.3g} s": train.total_steps * step}
        for what, each, every in (
            ("validations", self.validation, train.validate_every),
            ("sets of samples", self.samples, train.sample_every),
        ):
            if each is not None:
                times = 1 + -(
                    -train.total_steps // every
                )  # before the first step and after the last
                parts[f"{times:,} {what} of {each:.3g} s"] = times * each
        yield (
            f"time: {in_words(sum(parts.values()))} ({', '.join(parts)}; measured over {MEASURED} "
            "steps on this machine; without loading, data.cache, checkpoints and exports)"
        )


def in_words(seconds: float) -> str:
    """Return a duration as days, hours, minutes or seconds, the two largest that are not 0."""
    left, found = round(seconds), []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count:
            found.append(f"{count} {unit}")
    return " ".join(found[:2]) or "less than a second"


def trial_overrides(config: Config, folder: Path) -> list[str]:
    """Return what a trial changes in a run's config: its length, and where and what it writes.

    Args:
        config: the run's.
        folder: for what is written, to be removed afterwards.
    """
    changed = [
        f"train.output_dir={folder / 'out'}",
        f"train.steps={WARM_UP + MEASURED}",
        "train.epochs=null",
        "train.resume=none",
        "train.keep_best=null",
        "train.push_to_hub=null",
        "train.push_checkpoints=false",
        "train.wandb=null",
        "train.wandb_name=null",
        "optimizer.warmup_steps=0",
    ]
    if config.data.cache:
        changed.append(f"data.cache={folder / 'cache'}")
    if config.fairness.every > REFRESH:
        changed.append(f"fairness.refresh_every={REFRESH}")
    return changed


def trial(config: Config, device: torch.device) -> Trial:
    """Take the steps, on every rank; a collective."""
    from fairhuman.training.run import Run

    run = Run(config, device)
    try:
        validation = samples = None
        if run.validation and config.train.validate_every:
            validation = _timed(run.measure)
        if config.train.sample_every:
            samples = _timed(lambda: run.draw_samples(0))
        coming = [run.step.load(next(run.batches))]

        def step() -> None:
            run.step.timer.start()
            run.step(coming.pop(), lambda: coming.append(run.step.load(next(run.batches))))
            run.step.timer.wait()

        steps = [_timed(step) for _ in range(WARM_UP + MEASURED)]
    finally:
        run.close()
    return Trial(steps[WARM_UP:], validation, samples)


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main(argv: Sequence[str] | None = None) -> int:
    """Take the trial as one rank; rank 0 writes what it found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # from the launcher
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args(argv)

    def work() -> int:
        config = load_config(args.config, args.overrides)
        quiet()
        from fairhuman.zero.process_group import init_distributed

        found = trial(config, init_distributed(config.train.timeout))
        if rank() == 0:
            write_text(args.out, json.dumps(asdict(found)))
        return 0

    return exit_code(work, "the trial's folder")


if __name__ == "__main__":
    sys.exit(main())
