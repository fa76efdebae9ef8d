"""`fairhuman doctor`: what it says of the installation, the machine and the configs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fairhuman import _C
from fairhuman.checkpointing.manifest import Manifest, Progress, Setup, installed
from fairhuman.cli import main
from fairhuman.config import training_configs
from fairhuman.zero.shard_map import Buffer, Piece, ShardMap

ROOT = Path(__file__).resolve().parents[2]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(["doctor", *arguments])
    return code, capsys.readouterr().out


def test_it_tells_what_was_built_and_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    _, text = run(capsys, "--config", str(ROOT / "configs" / "demo.yaml"), "--json")
    report = json.loads(text)
    assert report["packages"]["torch"] == torch.__version__
    assert _C.build_info()["compiler"] in report["built"]["fairhuman._C"]
    assert ("GPU" in report["machine"]) == (not torch.cuda.is_available())
    (plan,) = report["configs"].values()
    assert plan.startswith("exact on 3 objectives, ZeRO-2, AdamW8bit, fp32 on the CPU")


def test_a_least_cosine_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    demo = str(ROOT / "configs" / "demo.yaml")
    _, text = run(capsys, "--config", demo, "--json", "fairness.keep=0.9")
    (plan,) = json.loads(text)["configs"].values()
    assert plan.startswith("exact on 3 objectives, keep 0.9, ZeRO-2")


def test_each_config_in_configs_can_run_here(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    code, text = run(capsys)
    if not torch.cuda.is_available():
        assert code == 0
        assert text.endswith("no problems found\n")
    for path in training_configs(Path("configs")):
        assert str(path) in text


def test_a_broken_config_is_a_problem_and_the_others_are_still_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text((ROOT / "configs" / "demo.yaml").read_text() + "\nextra: 1\n")
    good = ROOT / "configs" / "demo.yaml"
    code, text = run(capsys, "--config", str(bad), str(good))
    assert code == 2
    assert "extra: unknown key" in text
    assert "exact on 3 objectives" in text


def test_forced_backends_are_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIRHUMAN_OPS", "reference")
    assert "reference (FAIRHUMAN_OPS)" in run(capsys)[1]


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A run's folder with two checkpoints, one that was not finished, and its config."""
    for step in (100, 200):
        folder = tmp_path / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "states.pt").write_bytes(bytes(1 << 20))
        layout = ShardMap({"w": (4,)}, [[Buffer(0, 4, [Piece("w", 0, 4, 0)])]])
        layout.write(folder)
        Manifest(
            ranks=2,
            progress=Progress(step, 16 * step, 3),
            files={path.name: path.stat().st_size for path in folder.iterdir()},
            setup=Setup(2, 2, (), "fp32", "AdamW8bit"),
            global_batch=16,
            versions={**installed(), "torch": "1.0"},
        ).write(folder)
    (tmp_path / "checkpoints" / "step-00000300.partial").mkdir()
    config = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
    config["deepspeed"] = {"zero_optimization": {"stage": 2}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def test_a_run_s_checkpoints_are_listed_with_the_one_that_auto_takes(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = run(capsys, "--checkpoint", str(finished))
    assert code == 0
    assert "step-00000100\n" in text
    assert "step-00000200 (train.resume=auto takes this one)\n" in text
    assert "step-00000300.partial: was not finished" in text
    assert "made by       2 ranks, ZeRO-2, fp32, AdamW8bit\n" in text
    assert "size          0.00 GiB in 3 files\n" in text
    assert f"torch 1.0 (here {torch.__version__})" in text
    assert "resumes       bit-identical with 2 ranks, resharded with another number\n" in text


def test_a_checkpoint_in_json(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = finished / "checkpoints" / "step-00000100"
    code, text = run(capsys, "--checkpoint", str(folder), "--json")
    assert code == 0
    found = json.loads(text)
    (report,) = found["checkpoints"]
    assert found["sound"]
    assert report["whole"]
    assert not report["auto"]
    assert report["holds"]["step"] == "100"
    assert report["holds"]["samples"] == "1600"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ({"deepspeed": {"zero_optimization": {"stage": 3}}}, "to 2 ranks, ZeRO-3, fp32, AdamW8bit"),
        ({"optimizer": {"name": "SGD"}}, "not with this config: optimizer.name = 'SGD'"),
    ],
)
def test_how_a_config_would_resume_it(
    finished: Path, capsys: pytest.CaptureFixture[str], override: dict[str, Any], expected: str
) -> None:
    path = finished / "other.yaml"
    path.write_text(
        yaml.safe_dump(yaml.safe_load((finished / "config.yaml").read_text()) | override)
    )
    code, text = run(capsys, "--checkpoint", str(finished), "--config", str(path))
    assert code == 0
    assert expected in text


def test_what_a_checkpoint_lacks_is_told_and_auto_takes_the_one_before(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = finished / "checkpoints" / "step-00000200"
    os.truncate(last / "states.pt", 5)
    code, text = run(capsys, "--checkpoint", str(finished))
    assert code == 1
    assert "step-00000100 (train.resume=auto takes this one)\n" in text
    assert "  - states.pt is missing or has another size than when it was written\n" in text
    broken = ShardMap({"w": (1,)}, [[Buffer(0, 4, [Piece("w", 0, 1, 0)])]])
    first = finished / "checkpoints" / "step-00000100"
    (first / "layout.json").write_text(json.dumps({"shapes": {"w": [4]}, "ranks": broken.ranks}))
    assert "layout.json: has 1 of the 4 elements of w" in run(capsys, "--checkpoint", str(first))[1]
    (last / "manifest.json").unlink()
    code, text = run(capsys, "--checkpoint", str(last))
    assert code == 1
    assert "manifest.json is missing or broken" in text


def test_a_folder_without_checkpoints_is_a_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--checkpoint", str(tmp_path)]) == 2
    assert "holds no checkpoint; give OUT/checkpoints/step-" in capsys.readouterr().err
