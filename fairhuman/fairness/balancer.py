"""How the objectives share a step: `exact` solves for their weights, the baselines fix them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from fairhuman import ops
from fairhuman.fairness.mpd import Status
from fairhuman.fairness.zero import ZeroGradients


@dataclass(frozen=True)
class Balance:
    """What one optimizer step did with its objectives. None: not measured in this mode."""

    weights: list[float]
    """[K], 0 for an absent objective; after `fairness.normalize` and clipping."""
    update_norm: float | None
    """Norm of the gradient that the optimizer was given."""
    skipped: bool
    """The gradients were not finite: no rank changed its parameters."""
    grad_norms: list[float | None] = field(default_factory=list)
    cosines: list[list[float | None]] = field(default_factory=list)
    status: int | None = None
    residual: float | None = None
    iterations: int | None = None


class Balancer(Protocol):
    """One optimizer step: `start`, `backward` per micro-batch, `step`.

    Every method is a collective: all ranks call it alike, with the same `present`.
    """

    def start(self, present: Sequence[bool], micro_batches: int) -> None:
        """Begin a step; `present[k]` tells whether any rank's batch holds objective k."""

    def backward(self, losses: Tensor) -> None:
        """Take in a micro-batch's contributions to the K losses, [K]."""

    def step(self) -> Balance:
        """Move the parameters."""


class ExactBalancer:
    """Alpha-fair weights from the true gradients, one backward pass per present objective.

    FairHuman (arXiv 2507.02714): d = sum_k w_k g_k with A w = w^(-1/alpha); alpha = 2 is the
    Minimum Potential Delay criterion.
    """

    def __init__(self, engine: Any, alpha: float, normalize: str, max_norm: float | None) -> None:
        self.gradients = ZeroGradients(engine)
        self.alpha = alpha
        self.normalize = normalize
        self.max_norm = max_norm
        self._present: list[int] = []
        self._count = 0

    def start(self, present: Sequence[bool], micro_batches: int) -> None:
        """Begin a step; an absent objective costs no backward pass."""
        self._count = len(present)
        self._present = [k for k, here in enumerate(present) if here]
        self.gradients.start(len(self._present))

    def backward(self, losses: Tensor) -> None:
        """Add the gradient of each present loss to its sum."""
        self.gradients.backward([losses[k] for k in self._present])

    def step(self) -> Balance:
        """Solve for the weights and move along d; skip on all ranks if A is not finite."""
        # K x K numbers: the solver runs on the host, and its answer is logged from there.
        gram = self._embed(self.gradients.gram().cpu())
        solution = ops.solve_mpd(gram, self.alpha)
        status = int(solution.status)
        norms = gram.diagonal().sqrt().tolist()
        absent = [k not in self._present for k in range(self._count)]
        report: dict[str, Any] = {
            "grad_norms": [
                None if gone else norm for norm, gone in zip(norms, absent, strict=True)
            ],
            "cosines": _cosines(gram),
            "status": status,
            "residual": float(solution.residual),
            "iterations": int(solution.iterations),
        }
        if status & Status.NONFINITE:
            self.gradients.skip()
            return Balance([0.0] * self._count, None, skipped=True, **report)
        scale = step_scale(self.normalize, solution.weights, float(solution.norm), self.max_norm)
        weights = solution.weights * scale
        self.gradients.step(weights[self._present])
        return Balance(weights.tolist(), float(solution.norm) * scale, skipped=False, **report)

    def _embed(self, present: Tensor) -> Tensor:
        """Return the Gram matrix of all K objectives, zero where one is absent."""
        gram = present.new_zeros(self._count, self._count)
        rows = torch.tensor(self._present)
        gram[rows[:, None], rows[None, :]] = present
        return gram


class FixedBalancer:
    """One ordinary backward pass of sum_k w_k l_k, with weights that never change."""

    def __init__(self, engine: Any, weights: Sequence[float]) -> None:
        self.engine = engine
        self.fixed = torch.tensor(weights)
        self._weights = self.fixed
        self._left = 0

    def start(self, present: Sequence[bool], micro_batches: int) -> None:
        """Begin a step; the loss of an absent objective is 0 and so is its logged weight."""
        self._weights = self.fixed * torch.tensor(present)
        self._left = micro_batches

    def backward(self, losses: Tensor) -> None:
        """Run DeepSpeed's own backward, which reduces at the last micro-batch."""
        self._left -= 1
        self.engine.set_gradient_accumulation_boundary(self._left == 0)
        self.engine.backward((losses * self._weights.to(losses)).sum())

    def step(self) -> Balance:
        """Let DeepSpeed clip and step."""
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        update = math.inf if norm is None else float(norm)
        skipped = not self.engine.was_step_applied()
        clip = self.engine.gradient_clipping()
        if clip > 0:
            update = min(update, clip)
        unknown: list[float | None] = [None] * len(self.fixed)
        return Balance(
            weights=self._weights.tolist(),
            update_norm=None if skipped or not math.isfinite(update) else update,
            skipped=skipped,
            grad_norms=unknown,
            cosines=[unknown] * len(self.fixed),
        )


def step_scale(normalize: str, weights: Tensor, norm: float, max_norm: float | None) -> float:
    """Return the factor on d that `fairness.normalize` and clipping ask for.

    `ball` is the paper's trust region: d gets the norm `max_norm`, up or down. `simplex` makes
    the weights sum to 1, `none` leaves them; both are then clipped to `max_norm`. The norm of d
    is known from the solve, so none of this reads a gradient.
    """
    if norm == 0.0:
        return 1.0  # no objective has a gradient: there is nothing to scale
    if normalize == "ball":
        assert max_norm is not None, "the config check requires train.max_grad_norm for ball"
        return max_norm / norm
    scale = 1.0 / float(weights.sum()) if normalize == "simplex" else 1.0
    if max_norm is not None and norm * scale > max_norm:
        scale = max_norm / norm
    return scale


def _cosines(gram: Tensor) -> list[list[float | None]]:
    norms = gram.diagonal().sqrt()
    cosines = gram / (norms[:, None] * norms[None, :])
    return [[value if math.isfinite(value) else None for value in row] for row in cosines.tolist()]
