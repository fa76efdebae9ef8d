"""A signal before the first step ends the run at once, with nothing in the way of the next."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from launch import run, start


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_at_the_start_ends_all_ranks_at_once(
    tiny_model: Path, people: Path, tmp_path: Path, number: signal.Signals
) -> None:
    config, output = tmp_path / "config.yaml", tmp_path / "out"
    config.write_text(
        f"model: {{pretrained: {tiny_model}}}\n"
        f"data: {{root: {people}, resolution: 64}}\n"
        f"train: {{output_dir: {output}, steps: 1, batch_size: 1, precision: fp32}}\n"
        "deepspeed: {zero_optimization: {stage: 2}}\n"
    )
    words = ["--config", str(config)]
    ranks = start(words, 2, own_group=True)
    deadline = time.monotonic() + 200
    while not (output / ".fairhuman.lock").exists():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(ranks[0].pid, number)
    done = [rank.wait(60) for rank in ranks]
    printed = "".join(rank.printed for rank in done)
    assert [rank.returncode for rank in done] == [130, 130], printed
    assert printed.count(f"Stopped before the first step ({number.name})") == 1
    assert "Traceback" not in printed
    assert not list(output.rglob("step-*"))
    again = run(words)
    assert again.returncode == 0, again.printed
    assert not (output / "samples").exists()  # which nobody asked for
    assert "the pictures" not in again.printed
