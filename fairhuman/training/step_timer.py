"""Where the time of a training step goes."""

from __future__ import annotations

import time
from typing import Any

import torch

from fairhuman.common.transfer import queues, recorded

PARTS = ("data", "encode", "forward", "backward", "update")
"""Waiting for the batch; VAE, text encoders and noise; predictions and losses; gradients and their
sums over ranks; the objectives' weights and the optimizer."""
OTHER = "other"
"""What is left of the step: sums of losses over ranks, the moving average, waiting in them."""


class StepTimer:
    """A clock that is read at the end of each part.

    On a GPU the marks are events in the stream, so that a part has the time that the device spent
    between them (where it waited for the host, that too) and nothing waits for a mark. On a CPU it
    is the host's time.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[tuple[str, Any]] = []

    def start(self) -> None:
        """Begin a step."""
        self._marks = [("", self._now())]

    def mark(self, part: str) -> None:
        """End a part that began at the last mark; parts may come several times a step."""
        if self._marks:  # a step by itself, outside a training loop, is not timed
            self._marks.append((part, self._now()))

    def wait(self) -> None:
        """End the last part, and wait until the device has done all of the step."""
        self.mark(OTHER)
        if queues(self._device) and self._marks:
            self._marks[-1][1].synchronize()

    def seconds(self, total: float) -> dict[str, float]:
        """Return the step's seconds by `time/PART`, after `wait`; they sum to `total`.

        Args:
            total: of the whole step, by the host.
        """
        spent = dict.fromkeys(PARTS, 0.0)
        for (_, before), (part, after) in zip(self._marks, self._marks[1:], strict=False):
            if part != OTHER:
                spent[part] += _between(before, after)
        self._marks = []
        spent[OTHER] = max(0.0, total - sum(spent.values()))  # two clocks may differ a little
        return {f"time/{part}": value for part, value in spent.items()}

    def _now(self) -> Any:
        """Return the host's seconds, or an event."""
        return recorded(self._device, timed=True) if queues(self._device) else time.perf_counter()


def _between(before: Any, after: Any) -> float:
    if isinstance(before, float):
        return float(after - before)
    return float(before.elapsed_time(after)) / 1000
