"""The names of what a run writes into train.output_dir (OUT), and of what is in a checkpoint."""

from __future__ import annotations

from pathlib import Path

CONFIG = "config.yaml"
"""In OUT and in each checkpoint: the whole config, defaults included."""
ENVIRONMENT = "environment.json"
METRICS = "metrics.jsonl"
REPORT = "report.html"
WANDB_ID = "wandb_id.txt"
PUSHED = "pushed_checkpoints.json"
"""By repository on the hub: the checkpoints there that the run has pushed."""
CHECKPOINTS = "checkpoints"
FINAL = "final"
CARD = "README.md"
"""In FINAL: the model's page."""
SAMPLES = "samples"
EXPORTS = "exports"
"""What was trained after some of the steps, each as FINAL is."""
TENSORBOARD = "tensorboard"

FOLDERS = (CHECKPOINTS, EXPORTS, FINAL, SAMPLES, TENSORBOARD)
FILES = (CONFIG, ENVIRONMENT, METRICS, REPORT, WANDB_ID, PUSHED)

STEPS = "step-????????"
"""A pattern of the checkpoints' names."""
BEST = "best"
"""A link in CHECKPOINTS and in EXPORTS."""
MANIFEST = "manifest.json"
LAYOUT = "layout.json"
BALANCER = "balancer.pt"
START_LOSSES = "start_losses.json"


def checkpoint_folder(output: Path, step: int) -> Path:
    """Return where a run keeps its checkpoint of a step."""
    return output / CHECKPOINTS / f"step-{step:08d}"


def export_folder(output: Path, step: int) -> Path:
    """Return where a run keeps what was trained after a step."""
    return output / EXPORTS / f"step-{step:08d}"


def samples_sheet(output: Path, step: int) -> Path:
    """Return where a run keeps the pictures that it drew after a step."""
    return output / SAMPLES / f"step-{step:08d}.png"
