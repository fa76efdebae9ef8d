"""train.epochs: so many passes over the images, whatever the batch is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from runs import metrics, train, write_config

from fairhuman.checkpointing.manifest import Progress
from fairhuman.common.errors import ConfigError
from fairhuman.config import Config
from fairhuman.training.length import with_steps


def config_of(epochs: float | None, **train: Any) -> Config:
    return Config.model_validate(
        {
            "model": {"pretrained": "m"},
            "data": {"root": "d"},
            "optimizer": {"warmup_steps": train.pop("warmup_steps", 0)},
            "train": {"output_dir": "o", "epochs": epochs, **train},
            "deepspeed": {"zero_optimization": {"stage": 2}},
        }
    )


@pytest.mark.parametrize(
    ("epochs", "images", "batch", "steps"),
    [
        (1.0, 20, 5, 4),
        (1.0, 21, 5, 5),  # the last step begins another epoch
        (0.1, 30, 1, 3),  # 0.1 * 30 is 3.0000000000000004 in float64
        (1e-6, 10, 4, 1),  # never no step
        (2.5, 3, 1, 8),  # 7.5 samples
        (1.0, 3, 64, 1),
    ],
)
def test_the_steps_are_the_least_that_hold_the_samples(
    epochs: float, images: int, batch: int, steps: int
) -> None:
    train = with_steps(config_of(epochs), images, batch).train
    assert (train.total_steps, train.epochs) == (steps, None)


@pytest.mark.parametrize("batch", [1, 3, 7])
@pytest.mark.parametrize("done", [0, 1, 4])
def test_a_resumed_run_ends_after_as_many_samples(batch: int, done: int) -> None:
    config, images = config_of(3.0), 11
    # The same batch: the same end, from wherever it is resumed.
    whole = with_steps(config, images, batch).train.total_steps
    same = with_steps(config, images, batch, Progress(done, done * batch, 0))
    assert same.train.total_steps == whole
    # Another one: what is left, in steps of it.
    other = with_steps(config, images, 5, Progress(done, done * batch, 0)).train.total_steps
    assert other == done + math.ceil((33 - done * batch) / 5)


def test_a_run_that_has_seen_enough_is_at_its_end() -> None:
    found = with_steps(config_of(1.0), 10, 4, Progress(3, 12, 0))
    assert found.train.total_steps == 3


def test_given_steps_are_left_alone() -> None:
    config = config_of(None, steps=7)
    assert with_steps(config, 10, 4) is config


def test_what_the_steps_do_not_allow_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"optimizer.warmup_steps = 5: .* train.steps = 5: train"):
        with_steps(config_of(1.0, warmup_steps=5), 10, 2)
    with pytest.raises(ConfigError, match=r"train.epochs = 1e\+06 comes to .* give less"):
        with_steps(config_of(1e6), 10_000, 1)


def test_epochs_become_steps_and_a_resumed_run_ends_where_they_do(
    tiny_model: Path, people: Path, tmp_path: Path
) -> None:
    """Of 20 images: half of them in batches of 2, then the rest in batches of 3."""
    config, output = write_config(tmp_path, tiny_model, people), tmp_path / "out"
    tree = yaml.safe_load(config.read_text())
    del tree["train"]["steps"]
    tree["train"] |= {"epochs": 0.5, "resume": "auto", "validate_every": 0, "checkpoint_every": 0}
    config.write_text(yaml.safe_dump(tree))
    printed = train(config, output, 1)
    assert "train.epochs = 0.5: to step 5 of 2 samples" in printed
    assert "Done: 5 steps" in printed
    saved = yaml.safe_load((output / "config.yaml").read_text())
    assert (saved["train"]["steps"], saved["train"]["epochs"]) == (5, None)
    again = train(config, output, 1)
    assert "this run is finished: 5 steps were taken, and train.epochs is 0.5" in again
    longer = train(config, output, 1, "train.epochs=1", "train.batch_size=3")
    assert "train.steps: 5 -> 9" in longer
    assert [record["step"] for record in metrics(output)] == list(range(1, 10))
