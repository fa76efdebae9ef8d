"""The time of a run, from a few of its steps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import launch
import pytest
from runs import write_config

from fairhuman.cli import main
from fairhuman.config import Config, load_config
from fairhuman.planning import trial_run
from fairhuman.planning.trial_run import MEASURED, Trial, in_words, trial_overrides

SCRIPT = Path(trial_run.__file__)


def config(tmp_path: Path, *overrides: str) -> Config:
    return load_config(write_config(tmp_path, tmp_path, tmp_path), overrides)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "less than a second"),
        (59.6, "1 min"),
        (3600, "1 h"),
        (3725, "1 h 2 min"),
        (90_000, "1 d 1 h"),
        (86_401, "1 d 1 s"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


def test_steps_that_measure_count_as_often_as_in_the_run(tmp_path: Path) -> None:
    steps = [9.0, 2.0, 3.0, 1.0, 3.0, 1.0]  # one was held up
    found = Trial(steps, None, None)
    amortized = ["fairness.mode=amortized", "fairness.refresh_every=10"]
    assert found.step(config(tmp_path, *amortized)) == pytest.approx((3 + 9 * 1) / 10)
    assert found.step(config(tmp_path, "fairness.mode=global")) == pytest.approx(2.5)


def test_what_comes_before_the_first_step_and_after_the_last_counts(tmp_path: Path) -> None:
    more = ["train.steps=10", "train.validate_every=4", "train.sample_every=5"]
    (line,) = Trial([2.0] * MEASURED, 10.0, 100.0).lines(config(tmp_path, *more))
    assert "10 steps of 2 s" in line
    assert "4 validations of 10 s" in line  # after 0, 4, 8 and 10 steps
    assert "3 sets of samples of 100 s" in line  # after 0, 5 and 10
    assert line.startswith("time: 6 min (")


def test_a_trial_takes_the_config_s_steps_and_leaves_the_run_alone(
    tiny_model: Path, people: Path, tmp_path: Path
) -> None:
    file = write_config(tmp_path, tiny_model, people)
    more = ["train.steps=null", "train.epochs=3", "train.wandb=x", "train.wandb_name=y"]
    more += ["fairness.mode=amortized", "train.keep_best=val/loss/face", "train.sample_every=2"]
    more += ["train.sample_steps=1", "train.sample_prompts=[a boy]", "train.push_to_hub=me/x"]
    out, folder = tmp_path / "trial.json", tmp_path / "trial"
    changed = trial_overrides(load_config(file, more), folder)
    done = launch.run(["--config", str(file), "--out", str(out), *more, *changed], 2, script=SCRIPT)
    assert done.returncode == 0, done.stderr[-4000:]
    found = Trial(**json.loads(out.read_text()))
    assert len(found.steps) == MEASURED
    assert min(found.steps) > 0
    assert found.validation
    assert found.samples
    assert not (tmp_path / "out").exists()
    assert not list((folder / "out").glob("checkpoints/*"))


def test_measure_belongs_to_a_dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_config(tmp_path, tmp_path, tmp_path)
    assert main(["train", "--config", str(file), "--measure"]) == 2
    assert "--measure: belongs to --dry-run" in capsys.readouterr().err


@pytest.mark.nightly  # DeepSpeed's launcher, twice
def test_the_command_prints_the_time_or_why_it_is_unknown(
    tiny_model: Path, people: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = write_config(tmp_path, tiny_model, people)
    words = ["train", "--config", str(file), "--ranks", "1", "--dry-run", "--measure"]
    assert main(words) == 0
    assert "time: " in capfd.readouterr().out
    last = json.loads((people / "metadata.jsonl").read_text().splitlines()[-1])["file_name"]
    copy = tmp_path / "people"
    shutil.copytree(people, copy)
    (copy / last).write_bytes(b"no image")
    assert main([*words, f"data.root={copy}"]) == 0
    assert "time: not measured, for the trial run failed: " in capfd.readouterr().out
    assert not (tmp_path / "out").exists()
