"""The K gradients of a step, whatever DeepSpeed optimizer they come from.

DeepSpeed reduces and partitions whatever `backward` leaves. Every call of `engine.backward` here
is therefore made a gradient-accumulation boundary, its averaged shard is read from the
optimizer and added to the objective's own sum, and the optimizer is put back to where it was
before the backward.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor

from fairhuman.common.errors import ConfigError
from fairhuman.fairness import ops
from fairhuman.zero.access import ShardAccess
from fairhuman.zero.kinds import Kind, kind_of
from fairhuman.zero.protocol import Engine


class ZeroGradients:
    """The K gradients of one optimizer step, as this rank's ZeRO shards in float32.

    Holds K * P / ranks float32 numbers, P the count of trainable parameters; with optimizer
    offload they are in the CPU's memory.

    Raises:
        ConfigError: this DeepSpeed, or the optimizer that its config chose, cannot be used.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.access = _choose(engine)
        self.shards: list[list[Tensor] | None] = []

    def start(self, count: int) -> None:
        """Begin an optimizer step of `count` objectives."""
        self.shards = [None] * count
        # Where a parameter is reached by no objective, some optimizers still hold the last
        # step's gradient.
        self.access.reset()

    def backward(self, losses: Sequence[Tensor]) -> None:
        """Add the gradient of each of a micro-batch's losses to that objective's sum.

        The losses must depend on one graph, and every rank must call this the same number of
        times with the same number of losses: each backward is a collective.
        """
        self.engine.set_gradient_accumulation_boundary(True)
        self.access.mark()
        for index, loss in enumerate(losses):
            if index:
                self.access.rewind()
            self.engine.backward(loss, retain_graph=index + 1 < len(losses))
            self.shards[index] = self._take(self.shards[index])

    def gram(self) -> Tensor:
        """Return A = [<g_i, g_j>] of the gradients averaged over all ranks, [K, K] float64.

        Free of the fp16 loss scale. The ranks' shards are disjoint, so their Gram matrices
        add up to that of the whole gradients. The same bits on every rank.
        """
        total = ops.gram(self._rows()).to(self.engine.device)  # NCCL cannot reduce on the CPU
        dist.all_reduce(total)
        return total / self.access.loss_scale() ** 2

    def step(self, weights: Tensor, scale: Tensor | None = None) -> None:
        """Write scale * sum_k w_k g_k back to DeepSpeed and let its optimizer take the step."""
        rows = self._rows()
        self._finish(list(ops.combine(rows, weights, out=rows[0], scale=scale)))

    def skip(self) -> None:
        """Let DeepSpeed skip the step, and lower its loss scale where it has one.

        An infinite gradient is how DeepSpeed itself tells that a step must not be taken.
        """
        rows = self._rows()
        for part in rows[0]:
            part.fill_(float("inf"))
        self._finish(rows[0])

    def _rows(self) -> list[list[Tensor]]:
        rows = [row for row in self.shards if row is not None]
        assert len(rows) == len(self.shards), "an objective had no backward in this step"
        return rows

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

    def _finish(self, direction: list[Tensor]) -> None:
        self.access.write(direction)
        self.shards = []
        self.engine.step()


def _choose(engine: Engine) -> ShardAccess:
    """Return the access to the engine's optimizer, or say why there is none."""
    import deepspeed

    from fairhuman.zero.bf16 import BF16Shards
    from fairhuman.zero.stage3 import OffloadedStage3Shards, Stage3Shards
    from fairhuman.zero.stage12 import OffloadedStage12Shards, Stage12Shards

    optimizer, found = engine.optimizer, kind_of(engine)
    kind: type[ShardAccess]
    if found is Kind.STAGE12:
        kind = OffloadedStage12Shards if optimizer.cpu_offload else Stage12Shards
    elif found is Kind.STAGE3:
        kind = OffloadedStage3Shards if optimizer.offload_optimizer else Stage3Shards
    elif found is Kind.BF16:
        kind = BF16Shards
    else:
        raise ConfigError(
            "deepspeed: weights from gradients need ZeRO stage 1, 2 or 3, got the optimizer "
            f"{type(optimizer).__name__}"
        )
    missing = [f"{type(optimizer).__name__}.{n}" for n in kind.needs if not hasattr(optimizer, n)]
    if not hasattr(engine, "set_gradient_accumulation_boundary"):
        missing.append("engine.set_gradient_accumulation_boundary")
    if missing:
        raise ConfigError(
            f"deepspeed {deepspeed.__version__} has no {', '.join(missing)}, which "
            "weights from gradients need; install the version in constraints.txt"
        )
    return kind(engine)
