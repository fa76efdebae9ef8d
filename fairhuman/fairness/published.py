"""The published solver in the trainer's own step, so that nothing but the weights differs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fairhuman.fairness.mpd import MPDSolution, Status
from fairhuman.fairness.solve import Solver
from fairhuman.kernels.bench.published import backward_error, published_weights


class PublishedSolver(Solver):
    """In the place of `Solver`: the same length of the step, the published weights.

    Of gradients that are averaged over ranks and micro-batches and free of the loss scale, which
    the published code's are not.
    """

    def __call__(self, gram: Tensor, keeps: bool = True) -> MPDSolution:
        """Return the weights and the factor on d; `residual` is the componentwise backward error.

        A Gram matrix that is not finite gets no weights, as from our solver: the published code
        would crash.
        """
        A = gram.cpu()
        if not bool(A.isfinite().all()):
            return MPDSolution.of(
                torch.zeros(len(A), dtype=torch.float64),
                norm=0.0,
                residual=0.0,
                scale=1.0,
                cosine=math.nan,
                iterations=0,
                status=Status.NONFINITE,
            )
        w = published_weights(A, self.alpha)
        norm = (w @ A @ w).clamp(min=0.0).sqrt()
        status = Status.ABSENT if bool((A.diagonal() == 0).any()) else Status.OK
        return MPDSolution.of(
            w,
            norm=norm,
            residual=backward_error(A, w, self.alpha),
            scale=self.factor(norm, w.sum()),
            cosine=(A[0] @ w) / (A[0, 0].sqrt() * norm),
            iterations=0,
            status=status,
        )
