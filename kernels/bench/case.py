"""What a benchmark runs: one problem, several contenders, and how right each of them is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Clock = Literal["host", "device"]


def clock(device: torch.device) -> Clock:
    """Return the clock of what is limited by the device."""
    return "device" if device.type == "cuda" else "host"


@dataclass(frozen=True)
class Contender:
    """One way of doing the operation.

    `clock` "device" times what a CUDA device does; "host" the wall clock, which on a CUDA device
    is how long the call keeps the host (a contender that waits for the device pays for that).
    """

    name: str
    run: Callable[[], object]
    error: float
    """Against float64, as the case's `measure` says."""
    clock: Clock = "host"


def contenders(
    ways: Mapping[str, Callable[[], Tensor]], error: Callable[[Tensor], float], device: torch.device
) -> list[Contender]:
    """Try each way once.

    Args:
        ways: by name; the first is ours. Another that cannot do it is left out, with a line that
            says so: cuBLAS counts in 32 bits, and SDXL's UNet has more parameters than that.
        error: of a way's result, taken before the next way runs, which may overwrite it.
        device: what is timed.

    Raises:
        RuntimeError: ours cannot do it.
    """
    able: list[Contender] = []
    for name, run in ways.items():
        try:
            found = error(run())
        except RuntimeError as refused:
            if not able:
                raise
            reason = str(refused).strip().partition("\n")[0]
            print(f"{name} is left out: {reason}", file=sys.stderr)
            continue
        able.append(Contender(name, run, found, clock(device)))
    return able


@dataclass(frozen=True)
class Case:
    """One problem. The first contender is ours; `bound` is the largest error it may have."""

    op: str
    problem: str
    contenders: list[Contender]
    bound: float
    calls: int = 1
    """Operations in one run of a contender, to report the time of one."""
    bytes_moved: int | None = None
    """What the operation must read and write at least, for the share of the bandwidth."""

    def check(self) -> None:
        """Refuse to time what is wrong.

        Raises:
            AssertionError: our error is above its bound, or not a number.
        """
        ours = self.contenders[0]
        if not ours.error <= self.bound:
            raise AssertionError(
                f"{self.op}, {self.problem}: {ours.name} is off by {ours.error:.1e}, and may be "
                f"by {self.bound:.0e}: not timed"
            )
