"""What a step asks of the host, and how much of what the device can do it uses."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from fairhuman.kernels.bench.case import Contender, clock
from fairhuman.kernels.bench.timing import time_in_turn


@dataclass(frozen=True)
class HostWork:
    """The host's part of one step on a CUDA device."""

    seconds: float
    """Under the profiler, which lengthens it, and without the waits."""
    launches: int
    """Of kernels."""
    waits: int
    """For a stream or an event."""


def host_work(step: Callable[[], object], device: torch.device) -> HostWork | None:
    """Take a step under torch's profiler; None where the host itself computes."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as prof:
        began = time.perf_counter()
        step()
        wall = time.perf_counter() - began
    rows = [(row.key, row.count, row.self_cpu_time_total) for row in prof.key_averages()]
    return of_calls(rows, wall)


def of_calls(rows: Iterable[tuple[str, int, float]], wall: float) -> HostWork:
    """Sum up the calls of CUDA's runtime and driver.

    Args:
        rows: of each function its name, the number of calls, and their total microseconds.
        wall: seconds of the step.
    """
    launches = waits = 0
    waited = 0.0
    for name, count, microseconds in rows:
        if name.startswith(("cudaLaunchKernel", "cuLaunchKernel")):
            launches += count
        # Not cudaDeviceSynchronize, by which the profiler ends; a step has none.
        elif name.startswith(("cudaStreamSynchronize", "cudaEventSynchronize")):
            waits += count
            waited += 1e-6 * microseconds
    return HostWork(wall - waited, launches, waits)


def operations(step: Callable[[], object]) -> int:
    """Return the floating-point operations of a step's products, convolutions and attention.

    What is recomputed counts each time; a multiplication and its addition are two.
    """
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the operations a second that a large matrix product reaches on the device."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    (timing,) = time_in_turn([Contender("product", lambda: a @ b, 0.0, clock(device))], rounds=7)
    return 2.0 * side**3 / timing.p20
