"""Gradients of ZeRO-1 and ZeRO-2, which are reduced here and not by DeepSpeed.

DeepSpeed's hooks run some 0.3 ms of Python and four kernels for each parameter and backward pass,
and keep one gradient, which would then be copied. Here a parameter's hook only counts, and buckets
are reduced straight into the objective's own shard. The step, the weights and the optimizer's
states remain DeepSpeed's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from fairhuman.fairness import ops
from fairhuman.models.recompute import share_recomputation
from fairhuman.zero.gradients import Gradients, with_more
from fairhuman.zero.protocol import Engine
from fairhuman.zero.reducer import Reducer, Row


class ReducedGradients(Gradients):
    """For ZeRO-1 and 2 with the optimizer on the device; holds K * P / ranks float32 numbers."""

    needs: ClassVar[tuple[str, ...]] = (
        "_grad_acc_hooks",
        "averaged_gradients",
        "bit16_groups",
        "check_grad_overflow",
        "communication_data_type",
        "compute_grad_norm",
        "loss_scale",
        "overlap_comm",
        "partition_size",
        "reduce_bucket_size",
    )
    """The optimizer's attributes that are read or set, for the check at the start."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._reducer = Reducer(engine)
        self._blocks = share_recomputation(engine.module)

    @property
    def model(self) -> Callable[..., Any]:
        """The bare module: the engine's forward pass makes the next backward pass DeepSpeed's."""
        module = self.engine.module
        return partial(self._blocks.call, module) if self._blocks else module

    def start(self, count: int, micro_batches: int) -> None:
        """Begin an optimizer step of `count` objectives."""
        self.shards = [None] * count
        self._reducer.forget()
        self.engine.set_gradient_accumulation_boundary(True)

    def backward(self, losses: Sequence[Tensor | None]) -> None:
        """Add each loss's gradient, which is reduced while the backward pass still runs."""
        there = list(with_more(losses))
        if self._blocks and len(there) > 1:
            rows = [self._row(index) for index, _, _ in there]
            self._reducer.backward_together([loss for _, loss, _ in there], rows, self._blocks)
            return
        if self._blocks:
            self._blocks.forget()
        for index, loss, more in there:
            self._reducer.backward(loss, self._row(index), keep_graph=more)

    def _row(self, index: int) -> Row:
        shard = self.shards[index]
        if shard is not None:
            return Row(shard, fresh=False)
        self.shards[index] = shard = self._zeros()
        return Row(shard, fresh=True)

    def step(self, weights: Tensor, scale: Tensor | None = None) -> None:
        """Give DeepSpeed's optimizer scale * sum_k w_k g_k, in the memory of the first shard."""
        rows = self.rows()
        first = rows[0]
        ops.combine(rows, weights, out=first, scale=scale)
        del rows
        self.shards = []
        averaged = self.engine.optimizer.averaged_gradients
        for index in range(len(first)):
            averaged[index] = _Whole(first[index])
        del first  # each part's memory is free as soon as the optimizer has taken it
        self._finish(check=False)

    def skip(self) -> None:
        """Let DeepSpeed skip the step: an infinite gradient is how it tells so itself."""
        self.shards = []
        averaged = self.engine.optimizer.averaged_gradients
        for index in range(len(self.engine.optimizer.bit16_groups)):
            averaged[index] = [torch.full((1,), math.inf, device=self.engine.device)]
        self._finish(check=True)

    def _zeros(self) -> list[Tensor]:
        sizes = self.engine.optimizer.partition_size
        return [torch.zeros(int(size), device=self.engine.device) for size in sizes]

    def _finish(self, check: bool) -> None:
        """Let DeepSpeed step; both of its passes over the gradient wait for the device.

        The direction is known to be finite, and so is its norm.
        """
        self.engine.optimizer.compute_grad_norm = False
        self.engine.optimizer.check_grad_overflow = check
        self.engine.step()


class _Whole(list[Tensor]):
    """A group's gradient, which DeepSpeed takes as it is, without a copy."""

    def __init__(self, flat: Tensor) -> None:
        super().__init__([flat])
        self.flat_partition = flat
