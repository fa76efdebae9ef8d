"""From a Gram matrix to weights and the length of the step, with the run's settings."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fairhuman.fairness import ops
from fairhuman.fairness.mpd import MPDSolution, Normalize, Status, keep_mpd

# ||d||^2 = w'Aw is a difference of large numbers where objectives conflict. Below this part of the
# solver's own (regularised) norm it is rounding, and must not be blown up to the ball.
CANCELLED = 1e-6


@dataclass(frozen=True)
class Solver:
    """`fairness.alpha`, `normalize`, `floor` and `keep`, and `train.max_grad_norm`."""

    alpha: float = 2.0
    normalize: Normalize = "ball"
    max_norm: float | None = 1.0
    floor: float = 0.0
    keep: float = 0.0
    """The least cosine of d to the first gradient, by the matrix that is solved."""

    def __call__(self, gram: Tensor, keeps: bool = True) -> MPDSolution:
        """Return the weights of A, [K, K] float64, and the factor on d; see `ops.solve_mpd`.

        Where the first gradient is not the whole image's, `keeps` is false: there is no bound.
        With a floor the weights are those of A + (floor * largest norm)^2 I; norm, factor and
        cosine are those of the true d.
        """
        keep = self.keep if keeps else 0.0
        if self.floor == 0.0:
            return ops.solve_mpd(gram, self.alpha, self.normalize, self.max_norm, keep)
        norms2 = gram.diagonal()
        # What is absent stays so.
        ridge = self.floor**2 * norms2.max() * (norms2 > 0)
        found = ops.solve_mpd(gram + torch.diag(ridge), self.alpha)
        w = found.weights
        least = CANCELLED * found.norm
        norm = (w @ gram @ w).clamp(min=0.0).sqrt().maximum(least)
        figures = {"residual": found.residual, "iterations": found.iterations}
        fair = MPDSolution.of(
            w, norm=least, scale=1.0, cosine=math.nan, status=found.status, **figures
        )
        kept = keep_mpd(gram, fair, keep)
        norm = torch.where((kept.status & Status.KEPT) != 0, kept.norm, norm)
        return MPDSolution.of(
            kept.weights,
            norm=norm,
            scale=self.factor(norm, kept.weights.sum()),
            cosine=kept.cosine,
            status=kept.status,
            **figures,
        )

    def factor(self, norm: Tensor, weight_sum: Tensor) -> Tensor:
        """Return the factor on a direction of this norm, 0-d float64; 1 where the norm is 0.

        The rule of `ops.solve_mpd`, for a norm that is not the solver's.
        """
        limit = math.inf if self.max_norm is None else self.max_norm
        one = torch.ones_like(norm)
        scale = one / weight_sum if self.normalize == "simplex" else one
        if self.normalize == "ball":
            scale = limit / norm
        else:
            scale = torch.where(norm * scale > limit, limit / norm, scale)
        return torch.where(norm > 0, scale, one)


def cosine(gram: Tensor, first: Tensor, second: Tensor) -> float:
    """Return the cosine of two directions, sum_k v_k g_k and sum_k w_k g_k, by the Gram matrix."""
    A = gram.double()
    dot, squares = first @ A @ second, (first @ A @ first) * (second @ A @ second)
    return float(dot / squares.sqrt())
