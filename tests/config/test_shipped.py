"""The configs that come with FairHuman, by their names: from any folder, printed and copied."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fairhuman.cli import main
from fairhuman.common.errors import ConfigError
from fairhuman.config import load_config
from fairhuman.config.shipped import DEEPSPEED, shipped
from fairhuman.evaluation.study import own

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_all_have_names() -> None:
    assert {path.resolve() for path in shipped().values()} == set(CONFIGS.glob("*.yaml"))
    found = {path.resolve() for path in shipped(DEEPSPEED).values()}
    assert found == set((CONFIGS / "deepspeed").glob("*.json"))


@pytest.mark.parametrize("name", [name for name in shipped() if "study" not in name])
def test_a_training_config_is_the_same_by_name_and_by_path(name: str) -> None:
    config = load_config(name)
    assert config == load_config(CONFIGS / f"{name}.yaml")
    assert load_config(name, ["deepspeed=zero3"]).deepspeed["zero_optimization"]["stage"] == 3


def test_a_study_is_known_by_its_name() -> None:
    assert own.load(Path("study")).arms == own.load(CONFIGS / "study.yaml").arms
    assert "as configured" in own.load(Path("demo")).arms


def test_a_file_of_the_same_name_goes_before(elsewhere: Path) -> None:
    (elsewhere / "demo").write_text((CONFIGS / "sdxl_lora.yaml").read_text())
    assert load_config("demo").model.method == "lora"


@pytest.mark.parametrize(
    ("given", "overrides", "words"),
    [
        ("sdxl_lra", [], "sdxl_lra: there is no such file, and no config"),
        ("sdxl_lra", [], "called so (did you mean sdxl_lora?); those are demo, flux1_lora, "),
        ("demo", ["deepspeed=zero4"], "called so (did you mean zero3?); those are zero1, zero2"),
        ("configs/demo", [], "configs/demo: there is no such config file"),
        ("demo.yaml", [], "demo.yaml: there is no such config file"),
    ],
)
def test_what_is_not_there_is_one_line(given: str, overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(given, overrides)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_they_are_listed_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(shipped())
    assert "sdxl_lora         A LoRA of SDXL on photographs of people. Set data.root; then" in lines
    assert main(["config", "show", "demo"]) == 0
    assert capsys.readouterr().out == (CONFIGS / "demo.yaml").read_text()


def test_a_copy_is_a_config_and_overwrites_nothing(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", "copy", "sdxl_lora", "mine"]) == 0
    assert capsys.readouterr().out == "mine/sdxl_lora.yaml\n"
    assert load_config("mine/sdxl_lora.yaml") == load_config("sdxl_lora")
    assert main(["config", "copy", "sdxl_lora", "mine"]) == 2
    assert "mine/sdxl_lora.yaml: already exists" in capsys.readouterr().err
    assert main(["config", "copy", "sdxl"]) == 2
    assert list(elsewhere.iterdir()) == [elsewhere / "mine"]


def test_the_trainer_takes_a_name_too(elsewhere: Path) -> None:
    words = [sys.executable, "-m", "fairhuman.train", "--config", "sdxl_lra"]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("sdxl_lra: there is no such file")
