"""The published solver in the trainer's own step, so that nothing but the weights differs."""

from __future__ import annotations

from torch import Tensor

from fairhuman.fairness.mpd import MPDSolution, Status
from fairhuman.fairness.solve import Solver
from fairhuman.kernels.bench.published import backward_error, published_weights


class PublishedSolver(Solver):
    """In the place of `Solver`: the same length of the step, the published weights.

    Of gradients that are averaged over ranks and micro-batches and free of the loss scale, which
    the published code's are not.
    """

    def __call__(
        self, gram: Tensor, keeps: bool = True, losses: Tensor | None = None
    ) -> MPDSolution:
        """Return the weights and the factor on d; `residual` is the componentwise backward error.

        A Gram matrix that is not finite gets no weights, as from our solver: the published code
        would crash.
        """
        A = gram.cpu()
        if not bool(A.isfinite().all()):
            return MPDSolution.none(len(A))
        weights = published_weights(A, self.alpha)
        return self.of_weights(
            A,
            weights,
            least=A.new_zeros(()),
            residual=backward_error(A, weights, self.alpha),
            status=Status.ABSENT if bool((A.diagonal() == 0).any()) else Status.OK,
        )
