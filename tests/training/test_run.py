"""The parts around the step: checkpoints on disk, the log, what is held out."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from checkpoints import make_checkpoint

from fairhuman import checkpointing
from fairhuman.checkpointing.manifest import Progress, Setup
from fairhuman.common.errors import ConfigError, DataError
from fairhuman.training.metrics_log import keep_until
from fairhuman.training.validation import hold_out

SETUP = Setup(2, 2, (), "fp32", "AdamW")


def test_auto_takes_the_newest_whole_checkpoint(tmp_path: Path) -> None:
    assert checkpointing.find(tmp_path, "auto") is None
    first = make_checkpoint(tmp_path, 100)
    second = make_checkpoint(tmp_path, 200)
    (tmp_path / "checkpoints" / "step-00000300.partial").mkdir()
    assert checkpointing.find(tmp_path, "auto") == second
    (second / "weights").write_bytes(b"12")  # cut short by a full disk
    assert checkpointing.find(tmp_path, "auto") == first
    assert checkpointing.resumable(first, SETUP).progress == Progress(100, 800, 1)


def test_what_cannot_be_resumed_says_why(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "a", 100)
    make_checkpoint(tmp_path / "a", 200)
    with pytest.raises(ConfigError, match=r"by 2 ranks, this run has 3, and the .*; start 2"):
        checkpointing.resumable(folder, replace(SETUP, ranks=3))  # before there were layouts
    with pytest.raises(ConfigError, match="there is no such folder"):
        checkpointing.find(tmp_path / "b", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="is no checkpoint of FairHuman"):
        checkpointing.find(tmp_path / "b", str(tmp_path))
    with pytest.raises(ConfigError, match="holds a run already"):
        checkpointing.find(tmp_path / "a", "none")
    with pytest.raises(ConfigError, match="went on to step-00000200"):
        checkpointing.find(tmp_path / "a", str(folder))
    assert checkpointing.find(tmp_path / "b", str(folder)) == folder
    (folder / "weights").unlink()
    with pytest.raises(ConfigError, match="is not whole: weights is missing"):
        checkpointing.find(tmp_path / "b", str(folder))


def test_another_form_can_be_resumed_and_another_optimizer_cannot(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, 100)
    manifest = json.loads((folder / "manifest.json").read_text()) | {"setup": asdict(SETUP)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    other = Setup(3, 3, ("optimizer",), "bf16", "AdamW")
    assert checkpointing.resumable(folder, other).setup == SETUP
    with pytest.raises(ConfigError, match=r"optimizer.name = 'SGD': .* made with AdamW, whose"):
        checkpointing.resumable(folder, replace(SETUP, optimizer="SGD"))
    (folder / "manifest.json").write_text("[]")
    with pytest.raises(ConfigError, match="is no checkpoint of FairHuman"):
        checkpointing.find(tmp_path / "b", str(folder))


def test_metrics_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": i}) + "\n" for i in range(1, 6)) + '{"st')
    keep_until(path, 3)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
    keep_until(tmp_path / "none.jsonl", 3)
    assert not (tmp_path / "none.jsonl").exists()


def test_the_line_of_the_start_is_put_where_a_file_has_lost_it(tmp_path: Path) -> None:
    path, start = tmp_path / "metrics.jsonl", {"step": 0, "val/loss/global": 0.5}

    def found() -> list[int]:
        return [json.loads(line)["step"] for line in path.read_text().splitlines()]

    assert not keep_until(path, 3, start)  # the log was removed, or is another folder's
    assert found() == [0]
    path.write_text("".join(json.dumps({"step": i}) + "\n" for i in range(1, 6)))
    assert not keep_until(path, 3, start)
    assert found() == [0, 1, 2, 3]
    assert keep_until(path, 2, start)
    assert found() == [0, 1, 2]
    keep_until(path, -1)  # a run from the beginning measures it again
    assert found() == []


def test_what_is_held_out_hangs_on_seed_and_name() -> None:
    names = [f"{i}.jpg" for i in range(50)]
    held = hold_out(names, 10, seed=0)
    assert held.sum() == 10
    assert (hold_out(["new.jpg", *names], 10, seed=0)[1:] & held).sum() >= 9
    assert (hold_out(names, 10, seed=1) != held).any()
    with pytest.raises(DataError, match="hold out fewer"):
        hold_out(names, 50, seed=0)
