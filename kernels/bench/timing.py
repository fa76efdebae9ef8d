"""Times in turn, so that what disturbs the machine disturbs every contender equally."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fairhuman.kernels.bench.case import Contender, clock

ROUNDS = 15
ROUND_S = 0.02
"""A round repeats its contender for at least this long."""


@dataclass(frozen=True)
class Timing:
    """Seconds per run, and bytes above what was there before."""

    p20: float
    p50: float
    p80: float
    peak_bytes: int | None


def time_in_turn(contenders: Sequence[Contender], rounds: int = ROUNDS) -> list[Timing]:
    """Run the contenders in turn, `rounds` times each."""
    peaks = [_peak_memory(contender.run) for contender in contenders]  # also warms up
    repeats = [max(1, int(ROUND_S / max(_once(c, 1), 1e-9))) for c in contenders]
    samples: list[list[float]] = [[] for _ in contenders]
    for _ in range(rounds):
        for times, contender, repeat in zip(samples, contenders, repeats, strict=True):
            times.append(_once(contender, repeat))
    timings = []
    for times, peak in zip(samples, peaks, strict=True):
        p20, p50, p80 = np.quantile(times, [0.2, 0.5, 0.8])
        timings.append(Timing(p20, p50, p80, peak))
    return timings


def _once(contender: Contender, repeat: int) -> float:
    """Return seconds per run over `repeat` runs."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    if contender.clock == "device":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeat):
            contender.run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000 / repeat
    began = time.perf_counter()
    for _ in range(repeat):
        contender.run()
    return (time.perf_counter() - began) / repeat


def _peak_memory(run: Callable[[], object]) -> int | None:
    run()
    with PeakMemory() as peak:
        run()
    return peak.bytes


class PeakMemory:
    """Bytes that a block needs above what is there when it begins: the GPU's, or the host's.

    `bytes` is known after the block, and None where the host does not tell.
    """

    bytes: int | None = None
    _before = 0

    def __enter__(self) -> PeakMemory:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
            return self
        try:
            Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
            self._before = _status_kib("VmRSS")
        except OSError:
            self._before = -1
        return self

    def __exit__(self, *error: object) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            self.bytes = torch.cuda.max_memory_allocated() - self._before
        elif self._before >= 0:
            self.bytes = max(0, _status_kib("VmHWM") - self._before) * 1024


def _status_kib(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {name}")


def bandwidth(device: torch.device) -> float:
    """Return the memory bandwidth that PyTorch reaches here, bytes/s: the best of reading one
    large tensor (its sum) and copying it."""
    count = 1 << 28 if device.type == "cuda" else 1 << 26
    tensor = torch.ones(count, device=device)
    other = torch.empty_like(tensor)
    size = tensor.numel() * tensor.element_size()
    read, copy = time_in_turn(
        [
            Contender("read", tensor.sum, 0.0, clock(device)),
            Contender("copy", lambda: other.copy_(tensor), 0.0, clock(device)),
        ],
        rounds=7,
    )
    return max(size / read.p20, 2 * size / copy.p20)
