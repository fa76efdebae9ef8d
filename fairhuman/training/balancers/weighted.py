"""One ordinary backward pass of sum_k w_k l_k, with the length of the step set afterwards."""

from __future__ import annotations

import torch
from torch import Tensor

from fairhuman.common.transfer import to_device
from fairhuman.fairness.mpd import MPDSolution
from fairhuman.fairness.solve import CANCELLED, Solver
from fairhuman.zero import Gradients


def weighted_sum(losses: Tensor, weights: Tensor) -> Tensor:
    """Return sum_k w_k l_k; a loss of weight 0 is left out, for 0 * inf would be NaN."""
    weights = to_device(weights.to(losses.dtype), losses.device)
    return (torch.where(weights == 0, 0.0, losses) * weights).sum()


class WeightedBackward:
    """A step of one objective, the weighted sum, in the memory of one gradient.

    Weights whose absolute values sum to 1 keep the gradient in the range of those of the losses,
    for fp16. And they only predict the norm of d: it is measured on the shards before the step and
    d is scaled in place, so that `fairness.normalize` and `train.max_grad_norm` hold as in `exact`.
    """

    def __init__(self, gradients: Gradients, solver: Solver) -> None:
        self.gradients = gradients
        self.solver = solver

    def start(self, micro_batches: int) -> None:
        """Begin an optimizer step."""
        self.gradients.start(1, micro_batches)

    def backward(self, losses: Tensor, weights: Tensor) -> None:
        """Add a micro-batch's `weighted_sum`."""
        self.gradients.backward([weighted_sum(losses, weights)])

    def step(self, solution: MPDSolution) -> tuple[float, float] | None:
        """Take the step; return the factor on `solution`'s weights and the norm of the update.

        None if the gradient is not finite: skipped on all ranks, the fp16 scale lowered.

        Args:
            solution: on the host; what `backward` was given are its weights over the sum of their
                absolute values.
        """
        norm = self.gradients.gram().cpu().diagonal().sqrt()
        total = solution.weights.abs().sum(0, keepdim=True)
        length = (norm * total).maximum(CANCELLED * solution.norm)
        factor = self.solver.factor(length, total)
        if not self.gradients.holds(total * factor, norm):  # nor where the norm is not finite
            self.gradients.skip()
            return None
        self.gradients.step(total * factor)
        if not self.gradients.engine.was_step_applied():
            return None
        return float(factor), float(norm * total * factor)
