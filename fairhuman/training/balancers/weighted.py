"""One ordinary backward pass of sum_k w_k l_k, with the length of the step set afterwards."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor

from fairhuman.fairness import ops
from fairhuman.fairness.mpd import MPDSolution
from fairhuman.fairness.solve import CANCELLED, Solver
from fairhuman.zero.access import ShardAccess
from fairhuman.zero.protocol import Engine


class WeightedBackward:
    """DeepSpeed's own backward and accumulation, in the memory of one gradient.

    Weights that sum to 1 keep the gradient in the range of those of the losses, for fp16. And
    they only predict the norm of d: it is measured on the shards before the step and d is
    scaled in place, so that `fairness.normalize` and `train.max_grad_norm` hold as in `exact`.
    """

    def __init__(self, engine: Engine, access: ShardAccess, solver: Solver) -> None:
        self.engine = engine
        self.access = access
        self.solver = solver
        self._left = 0

    def start(self, micro_batches: int) -> None:
        """Begin an optimizer step."""
        self.access.reset()
        self._left = micro_batches

    def backward(self, losses: Tensor, weights: Tensor) -> None:
        """Add a micro-batch's sum_k w_k l_k; DeepSpeed reduces it when it sees fit.

        An objective of weight 0 is left out: 0 * inf would be NaN.
        """
        self._left -= 1
        self.engine.set_gradient_accumulation_boundary(self._left == 0)
        weights = weights.to(losses)
        self.engine.backward((torch.where(weights == 0, 0.0, losses) * weights).sum())

    def step(self, solution: MPDSolution) -> tuple[float, float] | None:
        """Take the step; return the factor on `solution`'s weights and the norm of the update.

        None if the gradient is not finite: skipped on all ranks, the fp16 scale lowered.

        Args:
            solution: on the host; what `backward` was given are its weights over their sum.
        """
        norm = self._norm()
        if not math.isfinite(norm):
            shard = self.access.zeros()
            for part in shard:
                part.fill_(math.inf)  # by which DeepSpeed itself tells to skip
            self.access.write(shard)
            self.engine.step()
            return None
        total = solution.weights.sum()
        length = (norm * total).maximum(CANCELLED * solution.norm)
        factor = float(self.solver.factor(length, total))
        self.access.rescale(factor * float(total))
        self.engine.step()
        if not self.engine.was_step_applied():
            return None
        return factor, norm * float(total) * factor

    def _norm(self) -> float:
        """Return the norm of the gradient averaged over all ranks, the same on every rank."""
        pieces = [piece.reshape(-1) for part in self.access.read() for piece in part]
        square = ops.gram([pieces]) if pieces else torch.zeros(1, 1, dtype=torch.float64)
        square = square.to(self.engine.device)
        dist.all_reduce(square)
        return math.sqrt(float(square)) / self.access.loss_scale()
