"""A small run of the trainer: its config, its command and what it wrote."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import launch

# What a clock or the machine decides.
UNREPEATABLE = ("samples_per_s", "step_time_s", "memory_gib", "time/")

CONFIG = """
model: {{pretrained: {model}}}
data: {{root: {people}, resolution: 64, mask_margin: 2, crop: random, flip: true, workers: 0,
  caption_dropout: 0.2, validation: 4}}
objectives: {{snr_gamma: 5.0}}
optimizer: {{name: AdamW8bit, lr: 1.0e-3, warmup_steps: 2}}
train: {{output_dir: {output}, steps: 6, batch_size: 2, precision: fp32, checkpoint_every: 3,
  validate_every: 3, sample_every: 0, resume: none}}
deepspeed: {{zero_optimization: {{stage: 2}}}}
"""


def command(config: Path, output: Path, overrides: Sequence[str] = ()) -> list[str]:
    """Return the trainer's command line."""
    return ["--config", str(config), f"train.output_dir={output}", *overrides]


def train(config: Path, output: Path, ranks: int, *overrides: str) -> str:
    """Train to the end and return what was printed."""
    done = launch.run(command(config, output, overrides), ranks)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.printed


def metrics(output: Path) -> list[dict[str, Any]]:
    """Return the steps of a run's metrics.jsonl, without what was measured before the first."""
    return [record for record in _lines(output) if record["step"] > 0]


def start_of(output: Path) -> dict[str, Any]:
    """Return what a run measured before its first step."""
    first: dict[str, Any] = _lines(output)[0]
    assert first["step"] == 0
    return first


def repeatable(output: Path) -> list[dict[str, Any]]:
    """Return of a run's metrics.jsonl what the same run gives again, its start included."""
    return [
        {key: value for key, value in record.items() if not key.startswith(UNREPEATABLE)}
        for record in _lines(output)
    ]


def _lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
