"""Where a step's host waits for the device, and how tensors get there: on a GPU that is not there.

The loop, the step, denoising, balancers, gradients of ZeRO-2 and the launchers of kernels run on
fake tensors at SDXL's sizes; `tests/support/fake_steps.py` says what is cut, `fake_engine.py` what
stands in for the rest: DeepSpeed's optimizer and its step, the ranks, the launches. A tensor on the
wrong device ends the process with torch's own error.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from fake_gpu import BLOCKING, ON_HOST, PAGEABLE, UNGUARDED, WAIT
from launch import run

SUPPORT = Path(__file__).resolve().parents[1] / "support"
CASES = ["full", "lora", "lora, text encoders", "controlnet", "t2i_adapter", "t2i_adapter, floor"]

# Where a step may wait, once, and why.
SOLVE = {"fairhuman/training/balancers/base.py:step"}  # is the step taken? with all it logs of A
SKETCHED = {"fairhuman/training/balancers/amortized.py:solve"}  # weights, for one backward pass
FORECAST = {
    "fairhuman/fairness/forecast.py:predict"
}  # what the first losses feel of the prediction
NORM = {"fairhuman/training/balancers/weighted.py:step"}  # is it finite? how long is the step?
END = {
    "fairhuman/training/step_timer.py:wait",  # the log: losses, and the device's time for the step
    "fairhuman/training/stop.py:agreed",  # the stop flag: does any rank end here?
}
ALLOWED = {
    "exact, measured": SOLVE | END,
    "amortized, measured": SOLVE | END,
    "amortized, between": FORECAST | NORM | END,
    "sketch, measured": SKETCHED | NORM | END,
    "sketch, between": FORECAST | NORM | END,
}

MISTAKES = {
    "copy_as_it_should_be": [],
    "read_a_number": [WAIT],
    "read_a_number_at_last": [WAIT],
    "decide": [WAIT],
    "list_numbers": [WAIT],
    "copy_to_host": [WAIT],
    "copy_to_host_unguarded": [UNGUARDED],
    "pick_by_a_mask": [WAIT],
    "pick_by_indices_of_the_host": [BLOCKING],
    "send_and_wait": [BLOCKING],
    "make_from_a_list": [BLOCKING],
    "write_from_pageable_memory": [PAGEABLE],
    "send_from_pageable_memory": [PAGEABLE],
    "sum_the_host_s": [ON_HOST],
}


@functools.cache
def printed(script: str, *words: str) -> Any:
    """What a script prints: in a process of its own, for the device stays in it."""
    done = run(words, script=SUPPORT / script)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def check(step: str, places: list[tuple[str, str, str, int]]) -> None:
    """Compare what a step met with what it may: neither more nor less."""
    found: Counter[tuple[str, str]] = Counter()
    for what, where, _, times in places:
        found[what, where] += times
    allowed = Counter((WAIT, place) for place in ALLOWED[step])
    more = [
        f"{what}: {where}, line {line}"
        for what, where, line, _ in places
        if (what, where) in found - allowed
    ]
    assert not more, f"{step}: not in ALLOWED, or not so often:\n" + "\n".join(more)
    gone = [place for _, place in allowed - found]
    assert not gone, f"{step}: in ALLOWED, and not met any more:\n" + "\n".join(gone)


def test_the_device_notes_every_wait_and_every_copy_that_is_not_pinned() -> None:
    found = dict(printed("fake_mistakes.py"))
    refused = found.pop("add_to_the_host_s")
    assert "cpu and fakegpu" in refused
    assert {name: [place[0] for place in places] for name, places in found.items()} == MISTAKES
    for name, places in found.items():
        assert all(place[1] == f"tests/support/fake_mistakes.py:{name}" for place in places)


def test_a_step_waits_for_the_solve_the_log_and_the_stop_flag_alone() -> None:
    found = printed("fake_steps.py", "t2i_adapter", "--modes", "exact")
    assert list(found) == ["exact, measured"]
    check("exact, measured", found["exact, measured"])


@pytest.mark.slow
@pytest.mark.parametrize("step", ALLOWED)
@pytest.mark.parametrize("case", CASES)
def test_no_step_waits_or_copies_where_it_need_not(case: str, step: str) -> None:
    """Of every way to train SDXL, in every mode that solves for weights."""
    found = printed("fake_steps.py", case)
    assert found.keys() == ALLOWED.keys()
    check(step, found[step])
