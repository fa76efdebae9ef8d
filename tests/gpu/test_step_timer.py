"""The clock of a step's parts on a CUDA device: events, and no waiting."""

from __future__ import annotations

import time

import pytest
import torch

from fairhuman.training.step_timer import StepTimer


def test_the_clock_makes_nobody_wait_and_its_parts_sum_to_the_step() -> None:
    device = torch.device("cuda")
    a = torch.randn(4096, 4096, device=device)
    timer = StepTimer(device)
    a @ a
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        started = time.perf_counter()
        timer.start()
        timer.mark("data")
        for _ in range(20):
            a @ a
        timer.mark("forward")
        timer.mark("update")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    timer.wait()
    total = time.perf_counter() - started
    spent = timer.seconds(total)
    assert sum(spent.values()) == pytest.approx(total, rel=0.01)
    # Though the host was long done: the time is that of the device.
    assert spent["time/forward"] == max(spent.values())
