"""The study of a training config: does it help on these data?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from fairhuman.common.errors import ConfigError
from fairhuman.config import load_config
from fairhuman.config.shipped import config_file
from fairhuman.config.yaml_settings import read_yaml
from fairhuman.evaluation.study.plan import Arm, Pictures, Study, load_study

OWN = "as configured"
FIXED = 5
"""The regions' weight in the arm of fixed weights."""


def load(path: Path, overrides: Sequence[str] = ()) -> Study:
    """Read a study; for a training config, return the study of it.

    Raises:
        ConfigError: every problem found, one line each.
    """
    path = config_file(path)
    tree = read_yaml(path)
    trains = "arms" not in tree and ("model" in tree or "data" in tree)
    return study_of(path, overrides) if trains else load_study(path, overrides)


def study_of(path: Path, overrides: Sequence[str] = ()) -> Study:
    """Return the study of a training config: plain, by fixed weights, and as it is configured.

    One seed, on all GPUs; its folder is `train.output_dir` with `-study` at the end.

    Raises:
        ConfigError: the config cannot be trained by, or holds nothing out to measure on.
    """
    config = load_config(path, overrides)
    if not config.data.validation:
        raise ConfigError(
            f"{path}: data.validation = 0: the study measures what is held out; set it to 50 or "
            "more images, such as data.validation=50"
        )
    if not (config.objectives.regions and config.fairness.solves):
        raise ConfigError(
            f"{path}: fairness.mode = {config.fairness.mode!r}: the study compares weights that "
            "are solved for with others; set it to exact, and name objectives.regions"
        )
    steps = config.train.steps
    if steps is None:
        raise ConfigError(
            f"{path}: train.epochs = {config.train.epochs:g}: a study counts steps, and compares "
            "its arms at the same one; set train.steps, and train.epochs to null"
        )
    weights = ", ".join(f"{region}: {FIXED}" for region in config.objectives.regions)
    default = ["fairness.keep=0", "fairness.rule=mpd"]
    return Study(
        train=str(path),
        set=list(overrides),
        output_dir=f"{config.train.output_dir.rstrip('/')}-study",
        arms={
            "plain": Arm(set=["fairness.mode=global", *default]),
            f"fixed {FIXED}": Arm(
                set=["fairness.mode=sum", *default, f"objectives.scale={{{weights}}}"]
            ),
            OWN: Arm(),
        },
        reference=OWN,
        steps=steps,
        # Four times, or as many times as divide the steps.
        measure_every=next(n for n in range(max(1, steps // 4), 0, -1) if steps % n == 0),
        same_compute=False,
        seeds=[config.train.seed],
        pictures=Pictures(count=0),
        ranks=max(1, torch.cuda.device_count()),
    )
