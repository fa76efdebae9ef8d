"""One gradient per objective out of DeepSpeed's ZeRO-1 and ZeRO-2, and one back in.

DeepSpeed reduces and partitions whatever `backward` leaves. Every call of `engine.backward` here
is therefore made a gradient-accumulation boundary, its averaged shard is read from the
optimizer and added to the objective's own sum, and the optimizer is put back to where it was
before the backward. This file is the only one that knows the optimizer's inner names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fairhuman import ops
from fairhuman.errors import ConfigError


class ZeroGradients:
    """The K gradients of one optimizer step, as this rank's ZeRO shards in float32.

    Holds K * P / ranks float32 numbers, P the count of trainable parameters.
    """

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.optimizer = _supported_optimizer(engine)
        self.shards: list[list[Tensor] | None] = []

    def start(self, count: int) -> None:
        """Begin an optimizer step of `count` objectives."""
        self.shards = [None] * count

    def backward(self, losses: Sequence[Tensor]) -> None:
        """Add the gradient of each of a micro-batch's losses to that objective's sum.

        The losses must hang on one graph, and every rank must call this the same number of
        times with the same number of losses: each backward is a collective.
        """
        self.engine.set_gradient_accumulation_boundary(True)
        for index, loss in enumerate(losses):
            self.engine.backward(loss, retain_graph=index + 1 < len(losses))
            self.shards[index] = self._take(self.shards[index])

    def gram(self) -> Tensor:
        """Return A = [<g_i, g_j>] of the gradients averaged over all ranks, [K, K] float64.

        Free of the fp16 loss scale. The ranks' shards are disjoint, so their Gram matrices
        add up to that of the whole gradients. The same bits on every rank.
        """
        total = ops.gram(self._rows())
        dist.all_reduce(total)
        return total / self._loss_scale() ** 2

    def step(self, weights: Tensor) -> None:
        """Write d = sum_k w_k g_k back to DeepSpeed and let its optimizer take the step."""
        rows = self._rows()
        self._write(list(ops.combine(rows, weights, out=rows[0])))

    def skip(self) -> None:
        """Let DeepSpeed skip the step, and lower its loss scale where it has one.

        An infinite gradient is how DeepSpeed itself tells that a step must not be taken.
        """
        rows = self._rows()
        for shard in rows[0]:
            shard.fill_(float("inf"))
        self._write(list(rows[0]))

    def _rows(self) -> list[list[Tensor]]:
        rows = [row for row in self.shards if row is not None]
        assert len(rows) == len(self.shards), "an objective had no backward in this step"
        return rows

    def _take(self, total: list[Tensor] | None) -> list[Tensor]:
        """Move the shard of the last backward into `total`, and reset the optimizer."""
        zero = self.optimizer
        groups = range(len(zero.bit16_groups))
        if total is None:
            total = [
                torch.zeros(
                    int(zero.partition_size[i]),
                    dtype=torch.float32,
                    device=zero.bit16_groups[i][0].device,
                )
                for i in groups
            ]
        for i in groups:
            start = 0
            for piece in zero.averaged_gradients[i]:
                total[i][start : start + piece.numel()].add_(piece.reshape(-1))
                start += piece.numel()
            zero.averaged_gradients[i] = None
            for parameter in zero.bit16_groups[i]:
                parameter.grad = None
                parameter.grad_accum = None
        return total

    def _write(self, direction: list[Tensor]) -> None:
        for i, shard in enumerate(direction):
            self.optimizer.averaged_gradients[i] = [shard]
        self.shards = []
        self.engine.step()

    def _loss_scale(self) -> float:
        return float(self.optimizer.loss_scale)


def _supported_optimizer(engine: Any) -> Any:
    """Return the engine's ZeRO-1/2 optimizer, or say why it cannot be used."""
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    optimizer = engine.optimizer
    if type(optimizer) is not DeepSpeedZeroOptimizer or optimizer.cpu_offload:
        raise ConfigError(
            "deepspeed: fairness.mode=exact needs ZeRO stage 1 or 2 without offload, got the "
            f"optimizer {type(optimizer).__name__}"
        )
    names = ("averaged_gradients", "bit16_groups", "partition_size", "loss_scale")
    missing = [name for name in names if not hasattr(optimizer, name)]
    if missing or not hasattr(engine, "set_gradient_accumulation_boundary"):
        import deepspeed

        raise ConfigError(
            f"deepspeed {deepspeed.__version__} lacks {', '.join(missing) or 'its boundary'}, "
            "which fairness.mode=exact reads; install the version in constraints.txt"
        )
    return optimizer
