"""What a benchmark runs: one problem, several contenders, and how right each of them is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

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
