"""What a run prints when it ends: what it wrote and where, or how to continue it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fairhuman.checkpointing.manifest import Progress
from fairhuman.common.run_folder import EXPORTS, FINAL, METRICS, REPORT, SAMPLES
from fairhuman.config import Config
from fairhuman.report.since_start import changes_in_words
from fairhuman.training.stop import Stop


def closing_lines(
    config: Config,
    done: bool,
    progress: Progress,
    stop: Stop,
    since: Mapping[str, float | None],
) -> list[str]:
    """Return where to look after the last step, or how to continue after a stop.

    Args:
        config: the run's.
        done: whether it has taken its last step.
        progress: where it is.
        stop: why it ends, if it is not done.
        since: changes of what is held out, by their keys; {} where they are not known.
    """
    output = Path(config.train.output_dir)
    if not done:
        return [
            f"Stopped after step {progress.step}{_skips(progress)} "
            f"({stop.reason or 'another rank was asked'}); the checkpoint is written.",
            "Continue with the same command and train.resume=auto",
        ]
    best, hub = progress.best, config.train.push_to_hub
    changed = list(changes_in_words(since, ["global", *config.objectives.regions]))
    return [
        f"Done: {progress.step} steps{_skips(progress)}.",
        _trained(config, output / FINAL),
        *(
            [f"  the best        step {best.step}: {best.metric} = {best.value:.6g}"]
            if best
            else []
        ),
        *(
            [f"  since the start {', '.join(changed)} (held out, ± standard error)"]
            if changed
            else []
        ),
        *([f"  the pictures    {output / SAMPLES}"] if config.train.sample_every else []),
        *(
            [f"  the exports     {output / EXPORTS}   (`fairhuman compare {output}`)"]
            if config.train.export_every
            else []
        ),
        *([f"  on the hub      {hub}   (uploading)"] if hub else []),
        f"  the report      {output / REPORT}",
        f"  the numbers     {output / METRICS}, or: tensorboard --logdir {output}",
    ]


def _trained(config: Config, final: Path) -> str:
    base = f"--model {config.model.pretrained}"
    name, words = {
        "full": ("model", "--model …"),
        "lora": ("LoRA", f"{base} --lora …"),
        "controlnet": ("ControlNet", f"{base} --controlnet … --control IMAGE"),
        "t2i_adapter": ("T2I-Adapter", f"{base} --adapter … --control IMAGE"),
    }[config.model.method]
    loads = "" if config.model.lora.of_lycoris else "diffusers; "
    return f"  the {name:<11} {final}   ({loads}`fairhuman generate {words}`)"


def _skips(progress: Progress) -> str:
    if not progress.skipped:
        return ""
    return f", {progress.skipped} of them skipped (gradients not finite)"
