"""The weights as the paper's published code solves for them: scipy's least_squares.

The call, its start and its absolute tolerances are those of the published training scripts
(PRIS-CV/FairHuman). What is around it is ours: gradients that are averaged over ranks and
micro-batches and free of the loss scale. What goes wrong in it is the study's to show.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fairhuman.fairness.mpd import MPDSolution, Status
from fairhuman.fairness.solve import Solver


def published_weights(gram: Tensor, alpha: float = 2.0) -> Tensor:
    """Return least_squares' weights of A, [K] float64 on the CPU.

    Equal weights to start from, and the default tolerances of 1e-8, which are absolute in the
    gradient of the residual's square: where gradients are small it stops at once.
    """
    from scipy.optimize import least_squares

    A = gram.detach().cpu().double().numpy()
    start = np.ones(len(A)) / len(A)
    found = least_squares(lambda w: A @ w - np.power(1 / w, 1 / alpha), start, bounds=(0, np.inf))
    return torch.from_numpy(found.x)


def cosine(gram: Tensor, first: Tensor, second: Tensor) -> float:
    """Return the cosine of two directions, sum_k v_k g_k and sum_k w_k g_k, by the Gram matrix."""
    A = gram.double()
    dot, squares = first @ A @ second, (first @ A @ first) * (second @ A @ second)
    return float(dot / squares.sqrt())


class PublishedSolver(Solver):
    """In the place of `Solver`: the same step's length, the published weights."""

    def __call__(self, gram: Tensor) -> MPDSolution:
        """Return the weights and the factor on d; `residual` is the componentwise backward error.

        A Gram matrix that is not finite gets no weights, as from our solver: the published code
        would crash.
        """
        A = gram.cpu()
        K = len(A)
        if not bool(A.isfinite().all()):
            nothing = torch.zeros(K + 5, dtype=torch.float64)
            nothing[-1] = Status.NONFINITE
            return MPDSolution(nothing)
        w = published_weights(A, self.alpha)
        target = w ** (-1 / self.alpha)
        residual = ((A @ w - target).abs() / (A.abs() @ w + target)).max()
        norm = (w @ A @ w).clamp(min=0.0).sqrt()
        status = Status.ABSENT if bool((A.diagonal() == 0).any()) else Status.OK
        fields = [norm, residual, self.factor(norm, w.sum()), torch.zeros(()), torch.tensor(status)]
        return MPDSolution(torch.cat([w, torch.stack([f.double() for f in fields])]))
