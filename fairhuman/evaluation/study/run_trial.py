"""One run of a study, in its own process.

python -m fairhuman.evaluation.study.run_trial --config FILE
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fairhuman.common.distributed import rank
from fairhuman.common.errors import ConfigError
from fairhuman.common.exit_code import exit_code
from fairhuman.common.files import replacing
from fairhuman.common.quiet import quiet
from fairhuman.common.run_folder import FINAL
from fairhuman.config import Config, load_config
from fairhuman.config.prompt_file import read_prompts
from fairhuman.fairness.published import PublishedStep
from fairhuman.models.generate import Sampling, Source, generate

if TYPE_CHECKING:
    from fairhuman.training.run import Run

PICTURES = "pictures"


def pictures_at(lora_scale: float) -> str:
    """Return the name of the folder of a run's pictures by its LoRA at a strength."""
    return PICTURES if lora_scale == 1 else f"{PICTURES}-lora-{lora_scale:g}"


def prepare(run: Run, published: float | None) -> None:
    """Check the start, and put the published step in the place of ours where it is asked for.

    Called when a run is built, its start is measured and no step is taken.

    Raises:
        ConfigError: no held-out image shows what the study is to measure.
    """
    balancer = run.step.balancer
    if published is not None:
        own = balancer.solver  # type: ignore[attr-defined]  # of an ExactBalancer
        step = PublishedStep(own.alpha, max_norm=own.max_norm, loss_scale=published)
        balancer.solver = step  # type: ignore[attr-defined]
    measured = run.start.means() if run.start else {}
    for name in run.names:
        loss = measured.get(f"val/loss/{name}")
        if loss is not None and not math.isfinite(loss):
            raise ConfigError(
                f"model.pretrained = {run.config.model.pretrained!r}: its held-out loss of {name} "
                f"is not finite under train.precision={run.config.train.precision}; give another "
                "precision, or another model"
            )
        if loss is None:
            raise ConfigError(
                f"data.validation = {run.config.data.validation}: none of the images that "
                f"train.seed = {run.config.train.seed} holds out shows a {name}; hold out more"
            )


def draw(source: Source, out: Path, prompts: Sequence[str], steps: int, guidance: float) -> None:
    """Draw a picture per prompt: all, or none."""
    with replacing(out) as aside:
        sampling = Sampling(steps=steps, guidance=guidance, batch_size=8)
        generate(source, prompts, aside, sampling)


def sources(config: Config, lora_scales: Sequence[float]) -> list[Source]:
    """Return what draws with the model that a run has trained: a LoRA at each strength."""
    final = Path(config.train.output_dir) / FINAL
    if config.model.method != "lora":
        return [Source(str(final))]
    base = config.model.pretrained
    return [Source(base, lora=final, lora_scale=s) for s in dict.fromkeys([1.0, *lora_scales])]


def main(argv: Sequence[str] | None = None) -> int:
    """Train and draw; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="of the run")
    parser.add_argument(
        "--published", type=float, metavar="SCALE", help="take the published step at a loss scale"
    )
    parser.add_argument("--prompts", type=Path, help="draw these; default: no pictures")
    parser.add_argument("--steps", type=int, default=25, help="of the sampler")
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument(
        "--lora-scales", type=float, nargs="*", default=[], help="draw with a LoRA at these too"
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # from the launcher
    args = parser.parse_args(argv)

    def work() -> int:
        config = load_config(args.config)
        quiet()
        from fairhuman.training.loop import train

        whole = train(config, prepare=lambda run: prepare(run, args.published))
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # there is no step to finish any more
        if whole and args.prompts and rank() == 0:
            prompts = read_prompts(args.prompts)
            for source in sources(config, args.lora_scales):
                out = Path(config.train.output_dir) / pictures_at(source.lora_scale)
                draw(source, out, prompts, args.steps, args.guidance)
        return 0 if whole else 3

    return exit_code(work, "train.output_dir")


if __name__ == "__main__":
    sys.exit(main())
