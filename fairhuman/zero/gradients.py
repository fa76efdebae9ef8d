"""The gradients of one optimizer step, one per objective, as this rank's ZeRO shards."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fairhuman.fairness import ops
from fairhuman.zero.protocol import Engine


class Gradients(ABC):
    """The K gradients of a step: `start`, `backward` per micro-batch, then `step` or `skip`.

    Every method is a collective. A shard is this rank's part of one gradient, averaged over the
    micro-batches and the ranks and times the loss scale: a list of float32 tensors. The ranks'
    shards are disjoint.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.shards: list[list[Tensor] | None] = []
        """Those of the K objectives, where they are held apart; None before the first backward."""

    @property
    def model(self) -> Callable[..., Any]:
        """What to call for the forward pass whose losses `backward` is given."""
        model: Callable[..., Any] = self.engine
        return model

    @abstractmethod
    def start(self, count: int, micro_batches: int) -> None:
        """Begin an optimizer step of `count` objectives."""

    @abstractmethod
    def backward(self, losses: Sequence[Tensor | None]) -> None:
        """Add the gradient of each of a micro-batch's losses to that objective's sum.

        The losses must depend on one graph, and every rank must call this the same number of
        times. None: on no rank does the micro-batch say anything of the objective; at least one
        loss is there, and each objective's in at least one micro-batch.
        """

    @abstractmethod
    def step(self, weights: Tensor, scale: Tensor | None = None) -> None:
        """Take the step along scale * sum_k w_k g_k, which must be finite: see `holds`.

        Args:
            weights: [K], float32 or float64.
            scale: 0-d; None for 1.
        """

    @abstractmethod
    def skip(self) -> None:
        """Let DeepSpeed skip the step, and lower its loss scale where it has one."""

    def rows(self) -> list[list[Tensor]]:
        """Return the K shards."""
        rows = [row for row in self.shards if row is not None]
        assert len(rows) == len(self.shards), "an objective had no backward in this step"
        return rows

    def gram(self) -> Tensor:
        """Return A = [<g_i, g_j>] of the gradients averaged over all ranks, [K, K] float64.

        Free of the fp16 loss scale. The ranks' shards are disjoint, so their Gram matrices
        add up to that of the whole gradients. The same bits on every rank.
        """
        total = ops.gram(self.rows()).to(self.engine.device)  # NCCL cannot reduce on the CPU
        dist.all_reduce(total)
        return total / self.loss_scale() ** 2

    def holds(self, weights: Tensor, norms: Tensor) -> bool:
        """Return whether `step` can work in float32: with the weights, and with their sum.

        Args:
            weights: [K], those of the step, on the host.
            norms: [K], of the gradients.
        """
        largest = torch.finfo(torch.float32).max
        weights = weights.abs()
        length = (weights * norms).sum() * self.loss_scale()
        return bool(torch.maximum(weights.max(), length) < largest)

    def loss_scale(self) -> float:
        """Return the factor that the shards carry."""
        return float(self.engine.optimizer.loss_scale)

    def forget_backward(self) -> None:  # noqa: B027  # most have nothing to forget
        """Let a forward pass of the bare module follow a backward pass that was not a step's."""

    def mark(self) -> None:  # noqa: B027
        """Remember the state after a forward pass, for `rewind`."""

    def rewind(self) -> None:  # noqa: B027
        """Get ready for another backward pass over the same graph."""


def with_more(losses: Sequence[Tensor | None]) -> Iterator[tuple[int, Tensor, bool]]:
    """Yield the losses that are there: objective, loss, whether another one follows."""
    there = [(index, loss) for index, loss in enumerate(losses) if loss is not None]
    for place, (index, loss) in enumerate(there, start=1):
        yield index, loss, place < len(there)
