"""Gradients that are collected from the buffers to which DeepSpeed reduces them.

DeepSpeed reduces and partitions whatever `backward` leaves. With several objectives, every call of
`engine.backward` is therefore made a gradient-accumulation boundary, its averaged shard is read
from the optimizer and added to the objective's own sum, and the optimizer is put back to where it
was before the backward.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from fairhuman.fairness import ops
from fairhuman.zero.access import ShardAccess
from fairhuman.zero.gradients import Gradients, with_more


class CollectedGradients(Gradients):
    """For ZeRO-3, offload and DeepSpeed's BF16 optimizer.

    Holds K * P / ranks float32 numbers, P the count of trainable parameters, but none where K is
    1; with optimizer offload they are in the CPU's memory.
    """

    def __init__(self, access: ShardAccess) -> None:
        super().__init__(access.engine)
        self.access = access
        self._left = 0

    def start(self, count: int, micro_batches: int) -> None:
        """Begin an optimizer step of `count` objectives."""
        self.shards = [None] * count
        self._left = micro_batches
        # Where a parameter is reached by no objective, some optimizers still hold the last
        # step's gradient.
        self.access.reset()

    def backward(self, losses: Sequence[Tensor | None]) -> None:
        """Add each loss's gradient; that of a single objective is left to DeepSpeed to add up."""
        self._left -= 1
        if self._single:
            self.engine.set_gradient_accumulation_boundary(self._left == 0)
            assert losses[0] is not None
            self.engine.backward(losses[0])
            return
        self.engine.set_gradient_accumulation_boundary(True)
        self.mark()
        for index, loss, more in with_more(losses):
            self.engine.backward(loss, retain_graph=more)
            self.shards[index] = self._take(self.shards[index])
            if more:
                self.rewind()

    def step(self, weights: Tensor, scale: Tensor | None = None) -> None:
        """Write scale * sum_k w_k g_k back to DeepSpeed and let its optimizer take the step."""
        if self._single:
            self.access.rescale(float(weights[0] if scale is None else weights[0] * scale))
        else:
            rows = self.rows()
            self.access.write(list(ops.combine(rows, weights, out=rows[0], scale=scale)))
        self._finish()

    def skip(self) -> None:
        """Let DeepSpeed skip the step: an infinite gradient is how it tells so itself."""
        shard = self.access.zeros() if self._single else self.rows()[0]
        for part in shard:
            part.fill_(math.inf)
        self.access.write(shard)
        self._finish()

    def rows(self) -> list[list[Tensor]]:
        """Return the K shards; that of a single objective as DeepSpeed's pieces of it."""
        if self._single:
            return [[piece.reshape(-1) for part in self.access.read() for piece in part]]
        return super().rows()

    def loss_scale(self) -> float:
        """Return the factor that the shards carry."""
        return self.access.loss_scale()

    def forget_backward(self) -> None:
        """Let a forward pass of the bare module follow a backward pass that was not a step's."""
        self.engine.optimizer.clear_backward_seen_flag()

    def mark(self) -> None:
        """Remember the state after a forward pass, for `rewind`."""
        self.access.mark()

    def rewind(self) -> None:
        """Get ready for another backward pass over the same graph."""
        self.access.rewind()

    @property
    def _single(self) -> bool:
        return len(self.shards) == 1

    def _take(self, total: list[Tensor] | None) -> list[Tensor]:
        """Move the shard of the last backward into `total`, and reset the optimizer."""
        if total is None:
            total = self.access.zeros()
        for part, pieces in zip(total, self.access.read(), strict=True):
            start = 0
            for piece in pieces:
                part[start : start + piece.numel()].add_(piece.reshape(-1))
                start += piece.numel()
        self.access.reset()
        return total

    def _finish(self) -> None:
        self.shards = []
        self.engine.step()
