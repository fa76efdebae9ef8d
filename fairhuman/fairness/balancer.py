"""How the objectives share a step: `exact` solves for their weights, the baselines fix them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from fairhuman import ops
from fairhuman.fairness.mpd import Normalize, Status, solves_on
from fairhuman.fairness.zero import ZeroGradients

T = TypeVar("T")


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

    def __init__(
        self, engine: Any, alpha: float, normalize: Normalize, max_norm: float | None
    ) -> None:
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
        gram = self.gradients.gram()
        solution = ops.solve_mpd(
            gram if solves_on(gram.device) else gram.cpu(),
            self.alpha,
            self.normalize,
            self.max_norm,
        )
        # All that the host needs to know, in the step's one wait for the backward passes.
        found, gram = solution.cpu(), gram.cpu()
        status = int(found.status)
        if len(self._present) < self._count:
            status |= Status.ABSENT
        report: dict[str, Any] = {
            "grad_norms": self._embed(gram.diagonal().sqrt().tolist(), None),
            "cosines": [self._embed(row, None) for row in self._embed(_cosines(gram), [])],
            "status": status,
            "residual": float(found.residual),
            "iterations": int(found.iterations),
        }
        if status & (Status.NONFINITE | Status.INVALID):
            self.gradients.skip()
            return Balance([0.0] * self._count, None, skipped=True, **report)
        self.gradients.step(solution.weights, solution.scale)
        weights = self._embed((found.weights * found.scale).tolist(), 0.0)
        return Balance(weights, float(found.norm * found.scale), skipped=False, **report)

    def _embed(self, present: Sequence[T], absent: T) -> list[T]:
        """Return one value for each of the K objectives from those of the present ones."""
        values = [absent] * self._count
        for k, value in zip(self._present, present, strict=False):
            values[k] = value
        return values


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


def _cosines(gram: Tensor) -> list[list[float | None]]:
    norms = gram.diagonal().sqrt()
    cosines = gram / (norms[:, None] * norms[None, :])
    return [[value if math.isfinite(value) else None for value in row] for row in cosines.tolist()]
