"""`fairhuman study --config` of a training config: the arms that matter, on the user's own data."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from runs import CONFIG, metrics

from fairhuman.cli import main
from fairhuman.common.errors import ConfigError
from fairhuman.evaluation.study.own import load
from fairhuman.evaluation.study.trials import make_trials


@pytest.fixture
def config(tiny_model: Path, people: Path, tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.format(model=tiny_model, people=people, output=tmp_path / "out"))
    return path


def test_a_training_config_is_studied_by_three_arms_that_differ_in_the_weights_alone(
    config: Path, tmp_path: Path
) -> None:
    found = load(config, ["fairness.keep=0.9", "train.steps=10", "objectives.scale={hand: 3}"])
    assert found.output_dir == str(tmp_path / "out-study")
    assert found.steps % found.measure_every == 0
    configs = {trial.arm: trial.config for trial in make_trials(found)}
    modes = {arm: (one.fairness.mode, one.fairness.keep) for arm, one in configs.items()}
    assert modes == {
        "plain": ("global", 0.0), "fixed 5": ("sum", 0.0), "as configured": ("exact", 0.9),
    }  # fmt: skip
    assert configs["fixed 5"].objectives.scale == {"face": 5, "hand": 5}
    assert configs["as configured"].objectives.scale == {"hand": 3}
    others = [
        one.model_copy(update={"fairness": None, "objectives": None, "train": None})
        for one in configs.values()
    ]
    assert others[0] == others[1] == others[2]
    assert {one.train.steps for one in configs.values()} == {10}


@pytest.mark.parametrize("steps", [1, 3, 7, 10, 2000])
def test_it_measures_at_the_last_step_whatever_their_number(config: Path, steps: int) -> None:
    found = load(config, [f"train.steps={steps}", "optimizer.warmup_steps=0"])
    assert found.steps % found.measure_every == 0


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.validation=0", "data.validation = 0: the study measures what is held out"),
        ("fairness.mode=sum", "fairness.mode = 'sum': the study compares weights that are solved"),
        ("objectives.regions=[]", "name objectives.regions"),
        ("train.stepz=1", "train.stepz: unknown key"),
    ],
)
def test_what_cannot_be_studied_is_told_in_one_line(
    config: Path, override: str, words: str
) -> None:
    more = ["train.validate_every=0"] if "validation" in override else []
    with pytest.raises(ConfigError) as caught:
        load(config, [override, *more])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_command_trains_measures_and_goes_on(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["study", "--config", str(config), "train.steps=4", "optimizer.warmup_steps=1"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "3 runs: arms plain, fixed 5, as configured; seeds 0" in said
    shown = (tmp_path / "out-study" / "study.md").read_text()
    assert "standard error over the held-out images" in shown
    for arm in ("plain", "fixed 5", "as configured"):
        assert re.search(rf"^\| {arm} \| 4 \|.*[+-]\d+\.\d\d ± \d+\.\d\d", shown, re.MULTILINE)
    run = tmp_path / "out-study" / "runs" / "plain" / "seed-0"
    last = metrics(run)[-1]
    assert f"{last['val/change/global']:+.2f} ± {last['val/change_se/global']:.2f}" in shown
    assert main(words) == 0
    assert "3 of 3 runs are there already" in capsys.readouterr().out
