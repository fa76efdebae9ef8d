"""Two runs that fill one data.cache: the second says for whom it waits, then continues."""

from __future__ import annotations

import functools
import subprocess
import sys
import time
from pathlib import Path

from ranks import run_ranks

from fairhuman.common.errors import OutputError
from fairhuman.common.lock import LOCK
from fairhuman.common.output_folder import filling

HOLDER = """
import sys, time
from fairhuman.common.lock import FolderLock
with FolderLock(sys.argv[1], "filling data.cache"):
    print("held", flush=True)
    sys.stdin.readline()
"""


def fill(folder: str) -> tuple[int, list[str], float]:
    """Fill the cache while another process does; return its number, what was said, the wait."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout
        assert other.stdin
        assert other.stdout.readline() == b"held\n"
        said: list[str] = []
        asked: list[float] = []

        def say(line: str) -> None:
            said.append(line)
            asked.append(time.monotonic())
            other.stdin.close()  # type: ignore[union-attr]  # the other ends

        with filling(Path(folder), say):
            assert other.wait(20) == 0
            return other.pid, said, time.monotonic() - asked[0]


def test_the_second_waits_for_the_first_and_says_so(tmp_path: Path) -> None:
    [(pid, said, waited)] = run_ranks(functools.partial(fill, str(tmp_path)), 1)
    assert len(said) == 1
    assert said[0].startswith("data.cache: waiting, for ")
    assert f"process {pid}" in said[0]
    assert "filling data.cache" in said[0]
    assert 0.5 < waited < 20


def blocked(folder: str) -> str:
    try:
        with filling(Path(folder), None):
            return "filled"
    except OutputError as error:
        return str(error)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    """A folder in the place of the lock stands in for a read-only disk."""
    (tmp_path / LOCK).mkdir()
    first, second = run_ranks(functools.partial(blocked, str(tmp_path)), 2)
    assert first == second
    assert first == (
        f"data.cache: lacks what this run asks for, and {tmp_path / LOCK}: cannot be written: Is a "
        "directory; make it writable, or give a copy that has all"
    )
