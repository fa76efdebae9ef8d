"""From a Gram matrix to weights and the length of the step, with the run's settings."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fairhuman.fairness import ops
from fairhuman.fairness.mpd import (
    MPDSolution,
    Normalize,
    Status,
    check_length,
    host_matrix,
    keep_mpd,
)
from fairhuman.fairness.rules import NATIVE, RULES, WITH_ALPHA, Rule, host_weights

# ||d||^2 = w'Aw is a difference of large numbers where objectives conflict. Below this part of the
# solver's own (regularised) norm it is rounding, and must not be blown up to the ball.
CANCELLED = 1e-6


@dataclass(frozen=True)
class Solver:
    """The settings of the section `fairness`, and `train.max_grad_norm`.

    Raises:
        ValueError: no such rule, or an alpha or a floor for a rule that has none.
    """

    alpha: float = 2.0
    normalize: Normalize = "ball"
    max_norm: float | None = 1.0
    floor: float = 0.0
    keep: float = 0.0
    """The least cosine of d to the anchor's gradient, by the matrix that is solved."""
    rule: Rule = "mpd"
    anchor: int = 0

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f"rule must be one of {', '.join(RULES)}, not {self.rule!r}")
        if self.rule not in WITH_ALPHA and self.alpha != Solver.alpha:
            raise ValueError(f"alpha = {self.alpha:g}: rule={self.rule!r} has no alpha")
        if self.rule not in NATIVE and self.floor:
            raise ValueError(f"floor = {self.floor:g}: rule={self.rule!r} has no floor")

    @property
    def needs_losses(self) -> bool:
        """Whether the weights depend on the losses too."""
        return self.rule == "log_mpd"

    def __call__(
        self, gram: Tensor, keeps: bool = True, losses: Tensor | None = None
    ) -> MPDSolution:
        """Return the weights of A, [K, K] float64, and the factor on d; see `ops.solve_mpd`.

        Where the anchor is not the objective that `keep` is about, `keeps` is false: there is no
        bound. With a floor the weights are those of A + (floor * largest norm)^2 I; norm, factor
        and cosine are those of the true d.

        Args:
            gram: A. A rule that is not native makes the host wait for it.
            keeps: see above.
            losses: [K], on A's device: those whose gradients A is of, where `needs_losses`. A loss
                that is no number above 0 has no logarithm: `Status.NONFINITE`, unless its gradient
                is 0.
        """
        keep = self.keep if keeps else 0.0
        if self.rule not in NATIVE:
            return self._on_host(gram, keep)
        if not self.needs_losses:
            return self._natively(gram, keep)
        assert losses is not None, "log_mpd needs the losses"
        values = losses.double()
        values = torch.where((values > 0) & values.isfinite(), values, math.nan)
        # The gradient of log l_k is g_k / l_k; that of what is absent stays 0.
        products = values[:, None] * values[None, :]
        logs = self._natively(torch.where(gram == 0, 0.0, gram / products), keep)
        weights = torch.where(logs.weights == 0, 0.0, logs.weights / values)
        return MPDSolution.of(
            weights,
            norm=logs.norm,
            residual=logs.residual,
            scale=self.factor(logs.norm, weights.sum()),
            cosine=logs.cosine,
            iterations=logs.iterations,
            status=logs.status,
        )

    def _natively(self, gram: Tensor, keep: float) -> MPDSolution:
        alpha = 1.0 if self.rule == "nash" else self.alpha
        if self.floor == 0.0:
            return ops.solve_mpd(gram, alpha, self.normalize, self.max_norm, keep, self.anchor)
        norms2 = gram.diagonal()
        # What is absent stays so.
        ridge = self.floor**2 * norms2.max() * (norms2 > 0)
        found = ops.solve_mpd(gram + torch.diag(ridge), alpha)
        return self.of_weights(
            gram,
            found.weights,
            least=CANCELLED * found.norm,
            residual=found.residual,
            iterations=found.iterations,
            status=found.status,
            keep=keep,
        )

    def _on_host(self, gram: Tensor, keep: float) -> MPDSolution:
        check_length(self.normalize, self.max_norm)
        A = host_matrix(gram)
        weights, status = host_weights(self.rule, A)
        if status & Status.NONFINITE:
            return MPDSolution.none(len(A)).to(gram.device)
        least = CANCELLED * (weights.abs() @ A.diagonal().clamp(min=0.0).sqrt())
        if bool(weights.any()) and float(weights @ A @ weights) <= float(least) ** 2:
            status |= Status.STATIONARY
        solution = self.of_weights(
            A, weights, least=least, residual=math.nan, status=status, keep=keep
        )
        return solution.to(gram.device)

    def of_weights(
        self,
        gram: Tensor,
        weights: Tensor,
        *,
        least: Tensor,
        residual: Tensor | float,
        status: Tensor | int,
        iterations: Tensor | int = 0,
        keep: float = 0.0,
    ) -> MPDSolution:
        """Return the solution with weights of any origin, [K] float64: bounded, and with a length.

        `least` is what ||d|| is at least taken for: below it, it is rounding.
        """
        norm = (weights @ gram @ weights).clamp(min=0.0).sqrt().maximum(least)
        figures = {"residual": residual, "iterations": iterations}
        given = MPDSolution.of(
            weights, norm=least, scale=1.0, cosine=math.nan, status=status, **figures
        )
        kept = keep_mpd(gram, given, keep, self.anchor)
        norm = torch.where((kept.status & Status.KEPT) != 0, kept.norm, norm)
        return MPDSolution.of(
            kept.weights,
            norm=norm,
            scale=self.factor(norm, kept.weights.abs().sum()),
            cosine=kept.cosine,
            status=kept.status,
            **figures,
        )

    def factor(self, norm: Tensor, weight_sum: Tensor) -> Tensor:
        """Return the factor on a direction of this norm, 0-d float64; 1 where the norm is 0.

        As in `ops.solve_mpd`, for a norm that is not the solver's. `weight_sum` is that of the
        weights' absolute values, which "simplex" makes 1.
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
