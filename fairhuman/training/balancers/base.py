"""How the objectives share a step: `exact` solves for their weights, the baselines fix them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from fairhuman.common.transfer import HostCopy, to_device
from fairhuman.fairness.mpd import MPDSolution, Status
from fairhuman.fairness.solve import Solver
from fairhuman.training.balancers.loss_mean import LossMean
from fairhuman.training.balancers.weighted import weighted_sum
from fairhuman.zero import make_gradients
from fairhuman.zero.loss_scale import skip_at_least_scale
from fairhuman.zero.protocol import Engine

T = TypeVar("T")


@dataclass(frozen=True)
class Balance:
    """What one optimizer step did with its objectives. None: not measured in this mode.

    Numbers of a skipped step may be NaN or infinite: `Log` writes them as null.
    """

    weights: list[float]
    """[K], 0 for an absent objective; after `fairness.normalize` and clipping. All 0 if skipped."""
    update_norm: float | None
    """Norm of the gradient that the optimizer was given; None if skipped."""
    skipped: bool
    """The gradients were not finite: no rank changed its parameters."""
    grad_norms: list[float | None] = field(default_factory=list)
    cosines: list[list[float | None]] = field(default_factory=list)
    status: int | None = None
    """Bits of `Status`; NONFINITE in a skipped step, whatever the mode."""
    residual: float | None = None
    iterations: int | None = None
    progress: list[float | None] = field(default_factory=list)
    """[K], the step's cosine to each objective's gradient, by the Gram matrix that was solved: to
    first order, a step lowers a loss where this is above 0."""
    shares: list[float | None] = field(default_factory=list)
    """[K], |w_k| ||g_k|| over its sum, by the same matrix."""


class Sensitivity(NamedTuple):
    """What a micro-batch's K losses feel of the prediction; see `Objectives.sensitivity`."""

    squares: Tensor
    """[K] float64, ||dl_k/dp||^2 of the micro-batch's contributions."""
    share: Tensor
    """[K] float64, its part of each objective's area in the whole global batch."""


class Balancer(ABC):
    """One optimizer step: `start`, `backward` per micro-batch, `step`.

    Every method is a collective: all ranks call it with the same `present`. Between
    `start` and `step` the caller goes through the step's micro-batches `passes` times, each time
    with the same losses, and predicts with `model`.
    """

    measures = False
    """Whether `backward` needs to be told the sensitivities."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        skip_at_least_scale(engine)

    @property
    def passes(self) -> int:
        """How often this step's micro-batches are gone through."""
        return 1

    @property
    def model(self) -> Callable[..., Any]:
        """What to call for the next micro-batch's prediction."""
        engine: Callable[..., Any] = self.engine
        return engine

    @abstractmethod
    def start(self, present: Sequence[bool], micro_batches: int) -> None:
        """Begin a step; `present[k]` tells whether any rank's batch holds objective k."""

    @abstractmethod
    def backward(
        self,
        losses: Tensor,
        sensitivity: Sensitivity | None = None,
        held: Sequence[bool] | None = None,
    ) -> None:
        """Take in a micro-batch.

        Args:
            losses: [K], its contributions to the losses.
            sensitivity: what they feel of the prediction, where `measures`.
            held: [K], whether this micro-batch of any rank holds the objective; None: all may.
                Where it does not, the contribution is 0 on all ranks.
        """

    @abstractmethod
    def step(self) -> Balance:
        """Move the parameters."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs: small, on the host, the same on every rank."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027  # most have none
        """Continue from what `state_dict` returned; that of another mode is `{}` or is ignored."""


class ExactBalancer(Balancer):
    """Weights from the true gradients by a rule, one backward pass per present objective.

    FairHuman (arXiv 2507.02714): d = sum_k w_k g_k with A w = w^(-1/alpha); alpha = 2 is the
    Minimum Potential Delay criterion. Other rules: `fairness.rules`.
    """

    def __init__(self, engine: Engine, solver: Solver) -> None:
        super().__init__(engine)
        self.gradients = make_gradients(engine)
        self.solver = solver
        self._present: list[bool] = []
        self._losses = LossMean(engine.device)
        self.losses: HostCopy | None = None
        """The last step's, [K] float64; None where the solver does not need them."""

    @property
    def model(self) -> Callable[..., Any]:
        """What the gradients need to be called."""
        return self.gradients.model

    def start(self, present: Sequence[bool], micro_batches: int) -> None:
        """Begin a step; an absent objective costs no backward pass."""
        self._present = list(present)
        self.gradients.start(sum(present), micro_batches)
        self._losses.start(micro_batches)

    def backward(
        self,
        losses: Tensor,
        sensitivity: Sensitivity | None = None,
        held: Sequence[bool] | None = None,
    ) -> None:
        """Add the gradient of each present loss to its sum."""
        if self.solver.needs_losses:
            self._losses.add(losses)
        self.gradients.backward(present_losses(losses, self._present, held))

    def step(self) -> Balance:
        """Solve for the weights and move along d; skip on all ranks if A or d is not finite."""
        gram = self.gradients.gram()
        losses = self._losses.get() if self.solver.needs_losses else None
        self.losses = None if losses is None else HostCopy(losses)
        solution = self.solver(gram, self._present[0], of_present(losses, self._present))
        # All that the host needs to know, in the step's one wait for the backward passes.
        copied = HostCopy(gram)
        found, gram = solution.cpu(), copied.get()
        measured = solved(found, self._present, gram) | of_gram(gram, self._present)
        norms = gram.diagonal().sqrt()
        if not found.solved or not self.gradients.holds(found.weights * found.scale, norms):
            self.gradients.skip()
            return not_taken(len(self._present), measured)
        self.gradients.step(solution.weights, solution.scale)
        if not self.engine.was_step_applied():
            return not_taken(len(self._present), measured)
        weights = embed((found.weights * found.scale).tolist(), self._present, 0.0)
        return Balance(weights, float(found.norm * found.scale), skipped=False, **measured)


class FixedBalancer(Balancer):
    """One ordinary backward pass of sum_k w_k l_k, with weights that never change."""

    def __init__(self, engine: Engine, weights: Sequence[float]) -> None:
        super().__init__(engine)
        self.fixed = torch.tensor(weights)
        self._weights = self.fixed
        self._left = 0

    def start(self, present: Sequence[bool], micro_batches: int) -> None:
        """Begin a step; the loss of an absent objective is 0 and so is its logged weight."""
        self._weights = self.fixed * torch.tensor(present)
        self._left = micro_batches

    def backward(
        self,
        losses: Tensor,
        sensitivity: Sensitivity | None = None,
        held: Sequence[bool] | None = None,
    ) -> None:
        """Run DeepSpeed's own backward, which reduces at the last micro-batch."""
        self._left -= 1
        self.engine.set_gradient_accumulation_boundary(self._left == 0)
        self.engine.backward(weighted_sum(losses, self._weights))

    def step(self) -> Balance:
        """Let DeepSpeed clip and step."""
        self.engine.step()
        if not self.engine.was_step_applied():
            return not_taken(len(self.fixed), unmeasured(len(self.fixed)))
        norm = self.engine.get_global_grad_norm()
        update = None if norm is None else float(norm)
        clip = self.engine.gradient_clipping()
        if update is not None and clip > 0:
            update = min(update, clip)
        return Balance(
            weights=self._weights.tolist(),
            update_norm=update,
            skipped=False,
            **unmeasured(len(self.fixed)),
        )


def indices(present: Sequence[bool]) -> list[int]:
    """Return which objectives are present."""
    return [k for k, here in enumerate(present) if here]


def present_losses(
    losses: Tensor, present: Sequence[bool], held: Sequence[bool] | None
) -> list[Tensor | None]:
    """Return a micro-batch's losses of the present objectives, None for what it does not hold."""
    return [losses[k] if held is None or held[k] else None for k in indices(present)]


def of_present(losses: Tensor | None, present: Sequence[bool]) -> Tensor | None:
    """Return the present objectives' losses of all K, on the same device."""
    if losses is None:
        return None
    return losses[to_device(torch.tensor(indices(present)), losses.device)]


def embed(values: Sequence[T], present: Sequence[bool], absent: T) -> list[T]:
    """Return one value for each of the K objectives from those of the present ones."""
    left = iter(values)
    return [next(left) if here else absent for here in present]


def not_taken(count: int, report: dict[str, Any]) -> Balance:
    """Return what a skipped step reports, with what was found out before."""
    status = (report.get("status") or 0) | Status.NONFINITE
    return Balance([0.0] * count, None, skipped=True, **(report | {"status": int(status)}))


def solved(found: MPDSolution, present: Sequence[bool], gram: Tensor) -> dict[str, Any]:
    """Return a solution's part of `Balance`, from the A it solves; both on the host."""
    status = int(found.status) | (0 if all(present) else Status.ABSENT)
    return {
        "status": status,
        "residual": None if bool(found.residual.isnan()) else float(found.residual),
        "iterations": int(found.iterations),
        "progress": embed(_progress(found, present[0], gram), present, None),
        "shares": embed(_shares(found, gram), present, None),
    }


def _progress(found: MPDSolution, anchored: bool, gram: Tensor) -> list[float | None]:
    """Return the cosines of d to the gradients; None for what is 0."""
    cosines = (gram @ found.weights / (gram.diagonal().sqrt() * found.norm)).clamp(-1.0, 1.0)
    if anchored:
        cosines[0] = found.cosine  # summed with more care
    return [value if math.isfinite(value) else None for value in cosines.tolist()]


def _shares(found: MPDSolution, gram: Tensor) -> list[float | None]:
    lengths = found.weights.abs() * gram.diagonal().sqrt()
    shares = (lengths / lengths.sum()).tolist()
    return [value if math.isfinite(value) else None for value in shares]


def of_gram(gram: Tensor, present: Sequence[bool]) -> dict[str, Any]:
    """Return the part of `Balance` that the present objectives' A, on the host, tells.

    The norm of a gradient that is not finite is not finite either.
    """
    norms = gram.diagonal().sqrt()
    cosines = [
        [value if math.isfinite(value) else None for value in row]
        for row in (gram / (norms[:, None] * norms[None, :])).tolist()
    ]
    nothing: list[float | None] = [None] * len(present)
    rows = [embed(row, present, None) for row in cosines]
    return {
        "grad_norms": embed(norms.tolist(), present, None),
        "cosines": embed(rows, present, nothing),
    }


def unmeasured(count: int) -> dict[str, Any]:
    """Return the part of `Balance` where no gradient of an objective is known by itself."""
    return {"grad_norms": [None] * count, "cosines": [[None] * count] * count}
