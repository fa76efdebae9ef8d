"""`fairness.mode: amortized`: exact steps now and then, one ordinary backward pass in between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fairhuman.common.transfer import HostCopy
from fairhuman.fairness.forecast import Forecast
from fairhuman.fairness.mpd import MPDSolution
from fairhuman.fairness.solve import Solver
from fairhuman.training.balancers.base import (
    Balance,
    Balancer,
    ExactBalancer,
    Sensitivity,
    embed,
    not_taken,
    of_present,
    solved,
    unmeasured,
)
from fairhuman.training.balancers.weighted import WeightedBackward
from fairhuman.zero import Gradients
from fairhuman.zero.protocol import Engine


class ForecastStep:
    """A step between two refreshes: weights from the predicted A, then one backward pass.

    The weights are fixed at the step's first micro-batch, the same for all micro-batches and
    ranks, so that d is sum_k w_k g_k of the whole batch. Then only the first micro-batch of each
    rank has been predicted: `calibrated` takes its sensitivities, summed over the ranks, as those
    of the whole batch, in proportion to the objective's area, which is known beforehand. Without
    accumulation that is no estimate. So it is with the losses, for a rule that needs them.
    """

    def __init__(self, gradients: Gradients, solver: Solver, forecast: Forecast) -> None:
        self.device = gradients.engine.device
        self.solver = solver
        self.forecast = forecast
        self.forecast_step = WeightedBackward(gradients, solver)
        self._present: list[bool] = []
        self._micro_batches = 0
        self._found: MPDSolution | None = None
        self.gram = torch.zeros(0)
        """The matrix that was solved last, on the host."""
        self._weights = torch.zeros(0)

    def start(self, present: Sequence[bool], micro_batches: int) -> None:
        """Begin a step."""
        self._present = list(present)
        self._micro_batches = micro_batches
        self._found = None
        self.forecast_step.start(micro_batches)

    def backward(self, losses: Tensor, sensitivity: Sensitivity | None) -> None:
        """Add a micro-batch's gradient, with weights solved for at the first one."""
        if self._found is None:
            whole = None
            if sensitivity is not None:
                whole = _whole(sensitivity, self.device)
            gram = self.forecast.predict(self._present, whole)
            self.solve(gram, self._predicted(losses, sensitivity))
        total = self._weights.abs().sum()
        self.forecast_step.backward(losses, self._weights / total.where(total != 0, 1.0))

    def _predicted(self, losses: Tensor, sensitivity: Sensitivity | None) -> Tensor | None:
        """Return the whole batch's losses, [K] on the host, where the solver needs them."""
        if not self.solver.needs_losses:
            return None
        assert sensitivity is not None, "its share of the areas"
        mean = losses.detach().double() / (self._micro_batches * dist.get_world_size())
        first = torch.stack([mean, sensitivity.share]).to(self.device, torch.float64)
        dist.all_reduce(first)
        found, share = first.cpu()  # as the prediction is
        # Where none of them holds the objective there is only what was measured.
        return torch.where(share > 0, found / share, self.forecast.losses)

    def solve(self, gram: Tensor, losses: Tensor | None = None) -> None:
        """Fix the step's weights by the present objectives' A, and all K losses if needed."""
        copied = HostCopy(gram)  # there when the solve is
        known = of_present(losses, self._present)
        self._found = self.solver(gram, self._present[0], known).cpu()
        self.gram = copied.get()
        weights = self._found.weights
        if not self._found.solved:
            # They make the gradient NaN on every rank, and so the step is skipped.
            weights = torch.full_like(weights, torch.nan)
        whole = embed(weights.tolist(), self._present, 0.0)
        self._weights = torch.tensor(whole, dtype=torch.float64)

    def step(self, measured: dict[str, Any] | None = None) -> Balance:
        """Take the step and report it, with what was `measured` of the gradients."""
        assert self._found is not None, "a step without a micro-batch"
        count = len(self._present)
        report = solved(self._found, self._present, self.gram)
        report |= measured or unmeasured(count)
        taken = self.forecast_step.step(self._found)
        if taken is None:
            return not_taken(count, report)
        factor, norm = taken
        return Balance((self._weights * factor).tolist(), norm, skipped=False, **report)


class Watch:
    """Sums a refresh's sensitivities over its micro-batches and the ranks."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._total: Tensor | None = None

    def start(self) -> None:
        """Begin a refresh."""
        self._total = None

    def add(self, sensitivity: Sensitivity | None) -> None:
        """Take in a micro-batch."""
        if sensitivity is not None:
            total = 0.0 if self._total is None else self._total
            self._total = sensitivity.squares.to(self.device) + total

    def total(self) -> HostCopy | None:
        """Return the [K] sums, the same on every rank; None if there was nothing to take in."""
        if self._total is None:
            return None
        dist.all_reduce(self._total)
        return HostCopy(self._total)


class AmortizedBalancer(Balancer):
    """An exact step every `fairness.refresh_every` steps, and the first time objectives meet.

    Between those a step costs what plain fine-tuning costs: 1 + (K - 1)/n backward passes on
    average. Its weights are those of a predicted A (`Forecast`), its length is the true one.
    """

    def __init__(self, engine: Engine, solver: Solver, forecast: Forecast) -> None:
        super().__init__(engine)
        self.measures = forecast.rule == "calibrated" or solver.needs_losses
        self.forecast = forecast
        self.exact = ExactBalancer(engine, solver)
        self.forecast_step = ForecastStep(self.exact.gradients, solver, forecast)
        self.refreshes = False
        """Whether the step that has been started is a refresh."""
        self._watch = Watch(engine.device)

    @property
    def model(self) -> Callable[..., Any]:
        """What the gradients need to be called."""
        return self.exact.model

    def start(self, present: Sequence[bool], micro_batches: int) -> None:
        """Begin a step, exact if it is time."""
        self.refreshes = self.forecast.due(present)
        self._watch.start()
        (self.exact if self.refreshes else self.forecast_step).start(present, micro_batches)

    def backward(
        self,
        losses: Tensor,
        sensitivity: Sensitivity | None = None,
        held: Sequence[bool] | None = None,
    ) -> None:
        """Run K backward passes, or one."""
        if self.refreshes:
            self._watch.add(sensitivity)
            self.exact.backward(losses, held=held)
        else:
            self.forecast_step.backward(losses, sensitivity)

    def step(self) -> Balance:
        """Move along d; a refresh that is skipped is tried again at the next step."""
        if not self.refreshes:
            return self.forecast_step.step()
        sensitivities = self._watch.total()  # there when the step has waited for its solve
        balance = self.exact.step()
        if not balance.skipped:
            found = sensitivities.get() if sensitivities else None
            losses = None if self.exact.losses is None else self.exact.losses.get()
            self.forecast.learn(balance.grad_norms, balance.cosines, found, losses)
        return balance

    def state_dict(self) -> dict[str, Any]:
        """Return what the refreshes have shown."""
        return self.forecast.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what refreshes had shown."""
        self.forecast.load_state_dict(state)


def _whole(sensitivity: Sensitivity, device: torch.device) -> Tensor:
    """Return the [K] sensitivities of the whole batch from each rank's first micro-batch."""
    first = torch.stack(list(sensitivity)).to(device, torch.float64)
    dist.all_reduce(first)
    squares, share = first
    # Where none of them holds the objective there is nothing to go by: 0.
    return torch.where(share > 0, squares / share, squares)
