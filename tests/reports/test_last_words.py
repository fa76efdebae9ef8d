"""A run that ends says why, whichever of its ranks is the first to end.

With launchers, which kill all ranks within a second of the first one's end.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from launch import launcher, torchrun

SCRIPT = """
import os, sys, time
from fairhuman.common import last_words
from fairhuman.common.distributed import PeerError
from fairhuman.common.errors import OutputError, UserError
from fairhuman.common.exit_code import exit_code

last_words.PATIENCE_S = {patience}
rank = int(os.environ["RANK"])

def work():
    if {group}:
        import torch.distributed as dist
        from datetime import timedelta
        dist.init_process_group("gloo", timeout=timedelta(seconds=15))
    time.sleep({seconds}[rank])
    if {waits} and rank == 0:
        dist.barrier()  # for a rank that is busy
    raise {errors}[rank]

sys.exit(exit_code(work, "out"))
"""
USER, PEER, BUG = 'UserError("the reason")', 'PeerError("a peer failed")', 'KeyError("a bug")'
LOST = 'OutputError("gone")'
# Whether in a process group; what each rank raises, after how many seconds; the exit code; what is
# printed once, and never.
CASES = {
    "a mistake, rank 0 late": (False, (USER, USER), (4, 0), 2, "the reason", "Traceback"),
    "the same in a group": (True, (USER, USER), (4, 0), 2, "the reason", "Traceback"),
    "a mistake of rank 1 alone": (False, (BUG, USER), (60, 0), 2, "the reason", "a bug"),
    "a bug of rank 1, late": (True, (PEER, BUG), (0, 4), 1, "KeyError: 'a bug'", "UserError"),
    "a bug of rank 0, late": (True, (BUG, PEER), (4, 0), 1, "KeyError: 'a bug'", "UserError"),
    "a rank too late": (True, (USER, USER), (0, 60), 1, "longer than train.timeout", "Traceback"),
    "a lost file, late": (True, (PEER, LOST), (0, 4), None, "gone", "Traceback"),
}


QUICK = ("a bug of rank 1, late",)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in CASES],
)
def test_a_run_says_once_why_it_ends(tmp_path: Path, name: str) -> None:
    group, errors, seconds, code, said, never = CASES[name]
    script = tmp_path / "script.py"
    script.write_text(
        SCRIPT.format(
            patience=2 if "alone" in name else 30,
            group=group,
            waits="too late" in name,
            seconds=seconds,
            errors=f"[{', '.join(errors)}]",
        )
    )
    done = subprocess.run(
        [*launcher(2), str(script)],
        env={**os.environ, "DS_ACCELERATOR": "cpu"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stderr.count(said) == 1, done.stderr
    assert never not in done.stderr
    assert done.returncode == code if code is not None else done.returncode != 0


@pytest.mark.slow
def test_nor_does_torchrun_add_to_what_was_said(tmp_path: Path) -> None:
    """Its agent has the store on which ranks tell each other: rank 0 must not make another."""
    script = tmp_path / "script.py"
    script.write_text(
        SCRIPT.format(
            patience=30, group=False, waits=False, seconds=(4, 0), errors=f"[{USER}, {USER}]"
        )
    )
    done = subprocess.run(
        [*torchrun(2), str(script)],
        env={**os.environ, "DS_ACCELERATOR": "cpu"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stderr.count("the reason") == 1, done.stderr
    assert "bind" not in done.stderr
    assert done.returncode == 1
