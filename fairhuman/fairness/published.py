"""The published step in the place of the trainer's own: its solver, its factor, its clipping."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from fairhuman.fairness.mpd import MPDSolution, Status
from fairhuman.fairness.solve import Solver
from fairhuman.kernels.bench.published import backward_error, published_weights

FACTOR = 3.0
"""On the direction, before it is clipped: the number of the scripts' losses."""
_EPSILON = 1e-6
"""Of torch.nn.utils.clip_grad_norm_."""


@dataclass(frozen=True)
class PublishedStep(Solver):
    """In the place of `Solver`: the step of the paper's training scripts.

    They train in fp16 and take the Gram matrix of gradients that still carry the loss scale S, so
    that least_squares solves S^2 A and returns about S^(-4/3) w. GradScaler divides S out of the
    combined gradient alone, the direction keeps the factor S^(-4/3), is multiplied by 3 and then
    clipped to `max_norm`, which it never reaches for a large S. Adam divides such a factor out
    again, but for its eps: where the gradient's elements are smaller than that, the update shrinks.

    S is a constant here, whatever the run's precision: GradScaler's goes up and down by what
    overflows. `normalize`, `floor` and `keep` do not enter. What else the scripts get wrong is not
    here: gradients are averaged over ranks and micro-batches, and an absent region has no weight.
    """

    loss_scale: float = field(kw_only=True)
    """S; 1: a run in float32."""

    def __call__(
        self, gram: Tensor, keeps: bool = True, losses: Tensor | None = None
    ) -> MPDSolution:
        """Return the weights and the factor on d; `residual` is the componentwise backward error.

        Both of the matrix that was solved. A Gram matrix that is not finite gets no weights, as
        from our solver: the published code would crash.
        """
        A = gram.cpu()
        if not bool(A.isfinite().all()):
            return MPDSolution.none(len(A))
        scaled = A * self.loss_scale**2
        weights = published_weights(scaled, self.alpha)
        return self.of_weights(
            A,
            weights,
            least=A.new_zeros(()),
            residual=backward_error(scaled, weights, self.alpha),
            status=Status.ABSENT if bool((A.diagonal() == 0).any()) else Status.OK,
        )

    def factor(self, norm: Tensor, weight_sum: Tensor) -> Tensor:
        """Return the factor on a direction of this norm, 0-d float64: 3, and the clipping."""
        limit = math.inf if self.max_norm is None else self.max_norm
        return FACTOR * (limit / (FACTOR * norm + _EPSILON)).clamp(max=1.0)
