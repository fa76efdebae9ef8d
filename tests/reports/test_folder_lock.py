"""A folder is one process's at a time, and a killed holder does not keep it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fairhuman.common.errors import OutputError
from fairhuman.common.lock import LOCK, FolderLock

HOLDER = """
import os, sys, time
from fairhuman.common.lock import FolderLock
lock = FolderLock(sys.argv[1], "training")
if os.fork() == 0:  # as a DataLoader's worker, which outlives a killed rank for a while
    time.sleep(60); os._exit(0)
print("held", flush=True)
time.sleep(60)
"""


@contextmanager
def holding(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock, with a forked child, in a session of their own."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def test_the_second_is_told_who_holds_it_and_a_killed_holder_frees_it(tmp_path: Path) -> None:
    with holding(tmp_path / "out") as holder:
        with pytest.raises(OutputError) as caught:
            FolderLock(tmp_path / "out", "annotate")
        line = str(caught.value)
        assert f"process {holder.pid} on {os.uname().nodename} (training) since" in line
        assert "\n" not in line
        os.kill(holder.pid, signal.SIGSTOP)  # it is alive all the while
        with pytest.raises(OutputError, match="in use"):
            FolderLock(tmp_path / "out", "annotate")
        holder.kill()
        holder.wait()  # its forked child still runs
        with FolderLock(tmp_path / "out", "annotate"):
            pass


def test_one_process_does_not_take_it_twice_and_a_released_one_is_free(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path, "training")
    with pytest.raises(OutputError, match=f"process {os.getpid()} on"):
        FolderLock(tmp_path / "." / "", "training")
    lock.release()
    lock.release()
    assert (tmp_path / LOCK).read_bytes() == b""


@pytest.mark.parametrize("content", [b"", b"\xff\x00", b"[]", b'{"pid": {}}', b"1" * 10_000])
def test_what_a_crash_left_in_the_file_does_not_matter(tmp_path: Path, content: bytes) -> None:
    (tmp_path / LOCK).write_bytes(content)
    with FolderLock(tmp_path, "training"):
        assert json.loads((tmp_path / LOCK).read_bytes())["pid"] == os.getpid()


def test_what_cannot_be_a_folder_is_refused_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "locked").mkdir()
    os.mkfifo(tmp_path / "locked" / LOCK)
    for folder in (tmp_path / "file", tmp_path / "file" / "x", tmp_path / ("x" * 300)):
        with pytest.raises(OutputError, match="cannot be written: "):
            FolderLock(folder, "training")
    with pytest.raises(OutputError, match=r"\.fairhuman\.lock: cannot be"):
        FolderLock(tmp_path / "locked", "training")


@pytest.mark.parametrize(
    ("holder", "free"),
    [
        (None, True),
        ({"host": os.uname().nodename, "pid": 2**22 + 1, "started": 0.0}, True),  # is no more
        ({"host": os.uname().nodename, "pid": os.getppid(), "started": 0.0}, True),  # given again
        ({"host": "another", "pid": 1, "started": time.time()}, False),
    ],
)
def test_without_locks_on_the_file_system_the_record_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holder: dict[str, Any] | None, free: bool
) -> None:
    """The one thing that is put on: no file system here lacks locks."""

    def none(*args: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", none)
    if holder:
        (tmp_path / LOCK).write_text(json.dumps(holder) + "\n")
    if free:
        FolderLock(tmp_path, "training").release()
    else:
        with pytest.raises(OutputError, match=r"process 1 on another.* remove .*lock"):
            FolderLock(tmp_path, "training")


def test_a_folder_that_only_held_the_lock_is_gone_afterwards(tmp_path: Path) -> None:
    """A run that is refused leaves nothing; what was there before stays."""
    with FolderLock(tmp_path / "new", "training"):
        pass
    with FolderLock(tmp_path / "used", "training"):
        (tmp_path / "used" / "config.yaml").touch()
    (tmp_path / "empty").mkdir()
    with FolderLock(tmp_path / "empty", "training"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "used"]
