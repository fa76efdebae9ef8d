"""A step's losses, as the balancers need them."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


class LossMean:
    """The K losses of a step over all its micro-batches and ranks."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._micro_batches = 0
        self._sum: Tensor | None = None

    def start(self, micro_batches: int) -> None:
        """Begin a step."""
        self._micro_batches = micro_batches
        self._sum = None

    def add(self, losses: Tensor) -> None:
        """Take in a micro-batch's [K] contributions."""
        values = losses.detach().to(self.device, torch.float64)
        self._sum = values if self._sum is None else self._sum + values

    def get(self) -> Tensor:
        """Return the losses, [K] float64 on the device, the same on every rank; a collective."""
        assert self._sum is not None, "a step without a micro-batch"
        total = self._sum.clone()
        dist.all_reduce(total)
        return total / (self._micro_batches * dist.get_world_size())
