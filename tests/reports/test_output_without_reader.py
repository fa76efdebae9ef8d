"""A run whose output nobody reads any more, as after a lost ssh connection, loses no step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from launch import TRAIN, start
from runs import command, repeatable, train, write_config
from safetensors.torch import load_file

SCRIPT = f"""
import os, runpy
if os.environ["RANK"] == "0":
    reader, writer = os.pipe()
    os.dup2(writer, 1)
    os.dup2(writer, 2)
    os.close(reader)
runpy.run_path({str(TRAIN)!r}, run_name="__main__")
"""


@pytest.fixture
def config(tiny_model: Path, people: Path, tmp_path: Path) -> Path:
    return write_config(tmp_path, tiny_model, people)


def test_it_writes_a_checkpoint_and_ends(config: Path, tmp_path: Path) -> None:
    """With the exit code of a run that was stopped; and it resumes as if it had not been."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    words = command(config, parts, ["train.checkpoint_every=0", "train.stopped_exit_code=75"])
    done = [rank.wait() for rank in start(words, 2, script=script)]
    assert [rank.returncode for rank in done] == [75, 75], done
    assert [path.name for path in (parts / "checkpoints").iterdir()] == ["step-00000001"]
    printed = train(config, parts, 2, "train.resume=auto")
    assert "stopped_exit_code" not in printed
    train(config, whole, 2)
    assert repeatable(parts) == repeatable(whole)
    name = Path("final") / "unet" / "diffusion_pytorch_model.safetensors"
    found, expected = load_file(parts / name), load_file(whole / name)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
