"""A run that ends by an error ends its data workers too; it does not wait for them for ever."""

from __future__ import annotations

from pathlib import Path

import launch
import runs


def test_a_failed_checkpoint_ends_a_run_with_workers(
    people: Path, tiny_model: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    config = tmp_path / "run.yaml"
    config.write_text(runs.CONFIG.format(model=tiny_model, people=people, output=output))
    in_the_way = output / "checkpoints" / "step-00000001.partial"
    in_the_way.parent.mkdir(parents=True)
    in_the_way.touch()
    words = runs.command(config, output, ["data.workers=2", "train.checkpoint_every=1"])
    (rank,) = launch.start(words)
    done = rank.wait(timeout=120)
    assert done.returncode == 2, done.printed
    assert "step-00000001: the checkpoint could not be written" in done.stderr
    assert "Traceback" not in done.stderr
