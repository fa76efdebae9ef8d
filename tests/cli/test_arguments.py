"""What a command is given, and what reads its output, never ends it in a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fairhuman.cli import main

LONG = "a" * 300
COMMANDS = [
    "demo-data --out LONG",
    "inspect LONG",
    "annotate LONG",
    "caption LONG --model LONG",
    "import coco-wholebody --annotations LONG --images LONG --out LONG",
    "import yolo --labels LONG --images LONG --face-class 0 --out LONG",
    "import openpose --keypoints LONG --images LONG --out LONG",
    "generate --model LONG --prompt a --out LONG",
    "evaluate --images LONG --out LONG",
    "export --model LONG --to diffusers --out LONG",
    "export-annotations LONG --out LONG",
    "report LONG",
    "study --config LONG",
    "train --config LONG",
    "doctor LONG",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_name_too_long_for_the_disk_is_one_line(
    command: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = main(command.replace("LONG", LONG).split())
    except SystemExit as error:
        pytest.fail(f"the arguments of the test are wrong: {error} {capsys.readouterr().err}")
    out, err = capsys.readouterr()
    said = out + err
    assert code != 0
    assert LONG[:100] in said
    if command != "doctor LONG":
        assert len(err.splitlines()) == 1


def test_bytes_that_are_no_text_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/\xff\xfe"
    done = subprocess.run(
        [sys.executable, "-m", "fairhuman", "demo-data", "--out", folder],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2
    assert b"is not UTF-8; rename the file" in done.stderr
    assert b"Traceback" not in done.stderr
    assert not any(tmp_path.iterdir())


def test_a_reader_that_has_seen_enough_ends_the_command_without_a_word() -> None:
    command = [sys.executable, "-m", "fairhuman", "config", "schema"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"{\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() in (0, 141)  # 0: all was in the pipe before it was closed


def test_a_full_disk_behind_the_output_is_one_line() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "fairhuman", "config", "schema"],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [b"fairhuman: No space left on device"]
