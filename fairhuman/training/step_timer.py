"""Where the time of a training step goes."""

from __future__ import annotations

import time

import torch

PARTS = ("data", "encode", "forward", "backward", "update")
"""Waiting for the batch; VAE, text encoders and noise; predictions and losses; gradients and their
sums over ranks; the objectives' weights and the optimizer."""
OTHER = "other"
"""What is left of the step: sums of losses over ranks, the moving average, waiting in them."""


class StepTimer:
    """A clock that is read at the end of each part.

    On CUDA the marks are events in the stream, so that a part has the time that the device spent
    between them (where it waited for the host, that too) and nothing waits for a mark. On a CPU it
    is the host's time.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[str, float | torch.cuda.Event]] = []

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
        if self._cuda and self._marks:
            last = self._marks[-1][1]
            assert isinstance(last, torch.cuda.Event)
            last.synchronize()

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

    def _now(self) -> float | torch.cuda.Event:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _between(before: float | torch.cuda.Event, after: float | torch.cuda.Event) -> float:
    if isinstance(before, float) or isinstance(after, float):
        assert isinstance(before, float)
        assert isinstance(after, float)
        return after - before
    milliseconds: float = before.elapsed_time(after)
    return milliseconds / 1000
