"""`fairhuman doctor`: what it says of the installation, the machine and the configs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fairhuman import _C
from fairhuman.cli import main

ROOT = Path(__file__).resolve().parents[1]


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


def test_each_config_in_configs_can_run_here(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    code, text = run(capsys)
    if not torch.cuda.is_available():
        assert code == 0
        assert text.endswith("no problems found\n")
    for path in Path("configs").glob("*.yaml"):
        assert str(path) in text


def test_a_broken_config_is_a_problem_and_the_others_are_still_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text((ROOT / "configs" / "demo.yaml").read_text() + "\nextra: 1\n")
    good = ROOT / "configs" / "demo.yaml"
    code, text = run(capsys, "--config", str(bad), str(good))
    assert code == 1
    assert "extra: unknown key" in text
    assert "exact on 3 objectives" in text


def test_forced_backends_are_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIRHUMAN_OPS", "reference")
    assert "reference (FAIRHUMAN_OPS)" in run(capsys)[1]
