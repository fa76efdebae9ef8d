"""The published solver in the trainer's own step, so that nothing but the weights differs."""

from __future__ import annotations

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

    def __call__(self, gram: Tensor) -> MPDSolution:
        """Return the weights and the factor on d; `residual` is the componentwise backward error.

        A Gram matrix that is not finite gets no weights, as from our solver: the published code
        would crash.
        """
        A = gram.cpu()
        if not bool(A.isfinite().all()):
            nothing = torch.zeros(len(A) + 5, dtype=torch.float64)
            nothing[-1] = Status.NONFINITE
            return MPDSolution(nothing)
        w = published_weights(A, self.alpha)
        norm = (w @ A @ w).clamp(min=0.0).sqrt()
        status = Status.ABSENT if bool((A.diagonal() == 0).any()) else Status.OK
        # The fields of MPDSolution in their order.
        fields = [norm, backward_error(A, w, self.alpha), self.factor(norm, w.sum()), 0, status]
        row = torch.tensor([float(field) for field in fields], dtype=torch.float64)
        return MPDSolution(torch.cat([w, row]))
