"""`fairhuman train`: what it finds before anything is started, and what it starts."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

import pytest
from runs import metrics, write_config

from fairhuman.cli import main, training


@pytest.fixture
def config(tiny_model: Path, people: Path, tmp_path: Path) -> Path:
    return write_config(tmp_path, tiny_model, people)


def test_a_dry_run_says_what_the_run_would_do_and_writes_nothing(
    config: Path, people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--config", str(config), "--ranks", "3", "--dry-run"]
    assert main([*words, "train.gradient_accumulation=5"]) == 0
    said = capsys.readouterr().out
    images = len((people / "metadata.jsonl").read_text().splitlines()) - 4  # held out
    assert "= 3 x 2 x 5): 180 samples" in said
    assert "6 steps of 30 samples" in said
    assert f"{180 / images:.3g} epochs of {images} images" in said
    assert "GiB on each of 3 GPUs" in said
    assert re.search(r"the most: \d+\.\d GiB, in phase", said)
    assert re.search(r"disk: \d+\.\d\d GiB for a checkpoint, 2 kept; \d+\.\d GiB are free", said)
    assert not (tmp_path / "out").exists()


def test_a_dry_run_counts_the_steps_of_epochs(
    config: Path, people: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--config", str(config), "--ranks", "2", "--dry-run"]
    assert main([*words, "train.steps=null", "train.epochs=3"]) == 0
    images = len((people / "metadata.jsonl").read_text().splitlines()) - 4  # held out
    assert f"{-(-3 * images // 4)} steps of 4 samples" in capsys.readouterr().out


def test_a_dry_run_tells_what_the_sources_come_to(
    config: Path, people: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """24 images twice, the same 4 held out of both: an epoch is 20 x 3 + 20 samples."""
    words = ["train", "--config", str(config), "--ranks", "2", "--dry-run", "data.root=null"]
    words += [f"data.sources=[{{root: {people}, repeats: 3}}, {{root: {people}, share: 0.5}}]"]
    assert main([*words, "train.steps=null", "train.epochs=2"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert any(line.startswith("40 steps of 4 samples") for line in said)
    assert any(line.endswith("160 samples, 2 epochs of 80 samples") for line in said)
    told = [line for line in said if line.startswith("data.sources")]
    assert told == [
        "data.sources: 24 images are in an earlier source too; one that is held out is trained on "
        "in none",
        "data.sources[0]: 20 images x 3, 50 % of the samples",
        "data.sources[1]: 20 images, 50 % of the samples",
    ]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            "train.steps=null train.epochs=0.01",
            "optimizer.warmup_steps = 2: must be less than train.steps = 1: train.epochs = 0.01",
        ),
        ("data.root=/nowhere", "data.root = '/nowhere': there is no such folder"),
        ("train.stepz=3", "train.stepz: unknown key"),
        ("data.validation=1000", "data.validation = 1000: the data set has"),
        ("--ranks 0", "--ranks 0: must be at least 1"),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_mistake_is_told_before_anything_is_started(
    config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], words: str, told: str,
    dry: list[str],
) -> None:  # fmt: skip
    assert main(["train", "--config", str(config), *words.split(), *dry]) == 2
    out, err = capfd.readouterr()
    assert not out
    assert len(err.splitlines()) == 1
    assert told in err
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_image_is_found_among_the_first(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.png").write_bytes(b"no image")
    (data / "metadata.jsonl").write_text(
        '{"file_name": "a.png", "text": "", "faces": [], "hands": []}\n'
    )
    assert main(["train", "--config", str(config), f"data.root={data}"]) == 2
    assert "a.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ranks", "named", "gpus", "chosen", "count"),
    [
        (2, None, 4, None, ["--num_accelerators", "2"]),
        (2, "5,6,7", 3, "5,6", []),
        (3, "5,6,7", 3, "5,6,7", []),
        (2, "0", 0, None, ["--num_accelerators", "2"]),  # a machine without a GPU
    ],
)
def test_ranks_are_on_the_gpus_that_the_user_has_chosen(
    monkeypatch: pytest.MonkeyPatch,
    ranks: int,
    named: str | None,
    gpus: int,
    chosen: str | None,
    count: list[str],
) -> None:
    """DeepSpeed's launcher does not heed CUDA_VISIBLE_DEVICES where it is told a number."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    args = argparse.Namespace(config=Path("c.yaml"), overrides=["a.b=1"])
    command = training._command(args, ranks)
    assert training._visible(ranks) == chosen
    assert command[1:-4] == count
    assert command[-3:] == ["--config", "c.yaml", "a.b=1"]


@pytest.mark.slow
def test_it_trains_under_the_launcher_with_its_exit_code(config: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "fairhuman", "train", "--config", str(config), "--ranks", "2"]
    done = subprocess.run([*words, "train.steps=3"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("$ ")
    assert "--num_accelerators 2" in done.stdout.splitlines()[0]
    records = metrics(tmp_path / "out")
    assert [record["step"] for record in records] == [1, 2, 3]
    # A mistake that only the run itself finds.
    failed = subprocess.run(
        [*words, "train.steps=3", "train.resume=/nowhere"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert failed.returncode != 0
    assert "/nowhere" in failed.stderr
