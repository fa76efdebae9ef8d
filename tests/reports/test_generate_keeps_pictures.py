"""`fairhuman generate`: a picture that is drawn is kept, and what cannot work is told first."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import fairhuman.models.generate as generate_module
from fairhuman.cli import main
from fairhuman.common.errors import OutputError
from fairhuman.demo.tiny import tiny_sdxl
from fairhuman.models.families.sdxl.model import SDXL
from fairhuman.models.generate import Sampling, Source, generate


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_sdxl(["a boy", "a girl"]).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_keeps_what_is_drawn_and_says_so(
    tiny: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "out"
    words = [sys.executable, "-m", "fairhuman", "generate", "--model", str(tiny), "--prompt", "x"]
    words += ["--count", "500", "--batch-size", "1", "--steps", "20", "--size", "64"]
    process = subprocess.Popen(
        [*words, "--out", str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 300
        while len(list(out.glob("*.png"))) < 2 and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(number)
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
    kept = sorted(out.iterdir())
    assert process.returncode == 130
    assert said == f"fairhuman: stopped; {len(kept)} of 500 pictures are in {out}\n"
    assert [path.name for path in kept] == [f"{index:04d}.png" for index in range(len(kept))]
    for path in kept:
        with Image.open(path) as picture:
            picture.load()


def test_a_picture_that_cannot_be_written_leaves_those_before_it(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is moved away while pictures are drawn."""
    drawn = SDXL.drawn

    def interrupted(*args: Any, **settings: Any) -> Any:
        for index, picture in enumerate(drawn(*args, **settings)):
            if index == 2:
                (tmp_path / "out").rename(tmp_path / "moved")
            yield picture

    monkeypatch.setattr(SDXL, "drawn", interrupted)
    with pytest.raises(OutputError, match=r"0002.png: cannot be written: No such file"):
        generate(
            Source(str(tiny)),
            ["x"] * 4,
            tmp_path / "out",
            Sampling(steps=1, size=64, batch_size=1),
        )
    assert sorted(p.name for p in (tmp_path / "moved").glob("*.png")) == ["0000.png", "0001.png"]


def test_the_grid_is_of_the_pictures_on_disk(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no larger than may be, however many they are."""
    paths = generate(Source(str(tiny)), ["x"] * 3, tmp_path / "a", Sampling(steps=1, size=64))
    sheet = Image.open(tmp_path / "a" / "grid.png")
    first = Image.open(paths[0])
    assert sheet.crop((4, 4, 68, 68)).tobytes() == first.tobytes()
    monkeypatch.setattr(generate_module, "_MOST_GRID", 3 * 16 * 16)
    small = generate_module._sheet(paths)
    assert small.size == (2 * 20 + 4, 2 * 20 + 4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--out", "file"], "is a file"),
        (["--out", "file/inside"], "is a file"),
        (["--out", "n" * 300], "File name too long"),
        (["--steps", "0"], "--steps 0: must be from 1"),
        (["--steps", "-1"], "--steps -1: must be from 1"),
        (["--steps", "1001"], "--steps 1001: must be from 1"),
        (["--seed", "99999999999999999999"], "--seed 99999999999999999999: must be from 0"),
        (["--seed", str(2**63 - 1), "--count", "2"], "must be from 0 to"),
        (["--seed", "-1"], "--seed -1: must be from 0"),
        (["--guidance", "nan"], "--guidance nan: must be"),
        (["--guidance", "inf"], "--guidance inf: must be"),
        (["--size", "0"], "--size 0: must be a multiple of 8"),
        (["--size", "8000000"], "--size 8000000: must be a multiple of 8, from 8 to"),
        (["--batch-size", "10000000000"], "--batch-size 10000000000: must be"),
        (["--lora-scale", "nan"], "--lora-scale nan: must be"),
        (["--count", "0"], "--count 0: must be from 1"),
        (["--count", "1000000000000"], "--count 1000000000000: must be from 1"),
        (["--prompt", "a\x07b"], "U+0007"),
        (["--prompt", "a\ud800b"], "U+D800"),
        (["--negative", "\x00"], "U+0000"),
        (["--prompts", "empty.txt"], "holds no prompt"),
        (["--prompts", "binary.txt"], "is no text in UTF-8"),
        (["--prompts", "zeros.txt"], "line 1: holds the character U+0000"),
        (["--prompts", "."], "Is a directory"),
        (["--controlnet", "x", "--control", "file"], "--control file: cannot be read as an image"),
        (["--controlnet", "x", "--control", "none.png"], "--control none.png: cannot be read"),
    ],
)
def test_what_cannot_work_is_told_before_the_model_is_loaded(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_bytes(b"")
    Path("empty.txt").write_text("\n \n")
    Path("binary.txt").write_bytes(b"\xff\xfe\x00")
    Path("zeros.txt").write_bytes(b"\x00" * 100)
    before = sorted(tmp_path.iterdir())
    base = ["generate", "--model", "no/model", "--prompt", "x", "--out", "new"]
    assert main([*base, *change]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_to_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    words = ["generate", "--model", "no/model", "--prompt", "x", "--out", str(closed / "out")]
    assert main(words) == 2
    assert "cannot be written to" in capsys.readouterr().err
