"""One optimizer step: from a rank's micro-batches to moved parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from fairhuman.common.transfer import HostCopy
from fairhuman.config import Config
from fairhuman.data.dataset import Batch
from fairhuman.fairness.forecast import Forecast
from fairhuman.fairness.losses import DWA, InverseLoss, Uncertainty
from fairhuman.fairness.solve import Solver
from fairhuman.training.balancers.amortized import AmortizedBalancer
from fairhuman.training.balancers.base import (
    Balance,
    Balancer,
    ExactBalancer,
    FixedBalancer,
    Sensitivity,
)
from fairhuman.training.balancers.by_loss import LossBalancer
from fairhuman.training.balancers.sketch import SketchBalancer
from fairhuman.training.denoising import Denoising, MicroBatch, Prepared
from fairhuman.training.step_timer import OTHER, StepTimer
from fairhuman.zero.protocol import Engine


class Loaded(NamedTuple):
    """A rank's part of a global batch, on its device."""

    micro_batches: list[MicroBatch]
    areas: Tensor
    """[K] float64, of the whole global batch."""
    host_areas: HostCopy
    """[M, K], of the ranks' M-th micro-batches together."""


class TrainingStep:
    """Moves the parameters by one global batch: all micro-batches of all ranks."""

    def __init__(self, engine: Engine, denoising: Denoising, balancer: Balancer) -> None:
        self.engine = engine
        self.denoising = denoising
        self.balancer = balancer
        self.timer = StepTimer(denoising.device)

    def load(self, batches: Sequence[Batch]) -> Loaded:
        """Move a rank's micro-batches to its device and sum the areas; a collective.

        The host waits for nothing that the device has still to do.
        """
        micro_batches = [self.denoising.load(batch) for batch in batches]
        areas = torch.stack([micro_batch.area for micro_batch in micro_batches])
        dist.all_reduce(areas)
        return Loaded(micro_batches, areas.sum(0), HostCopy(areas))

    def join_load(self, count: int) -> None:
        """Take part in the others' `load` of so many micro-batches each, with nothing to load."""
        shape = (count, len(self.denoising.objectives.names))
        dist.all_reduce(torch.zeros(shape, dtype=torch.float64, device=self.denoising.device))

    def __call__(
        self, loaded: Loaded, meanwhile: Callable[[], None] | None = None
    ) -> tuple[list[float | None], Balance]:
        """Take the step; return the K losses of the global batch, None where absent.

        A loss that is not finite is returned as it is. A collective: the same result on every rank.

        Args:
            loaded: from `load`.
            meanwhile: called while the device still computes the gradients: to load the next step.
        """
        count = len(loaded.micro_batches)
        contributions = count * dist.get_world_size()
        held = loaded.host_areas.get() > 0
        present = held.any(0).tolist()
        total = torch.zeros_like(loaded.areas)
        self.balancer.start(present, count)
        self.timer.mark(OTHER)
        ready = [self.denoising.prepare(micro_batch) for micro_batch in loaded.micro_batches]
        self.timer.mark("encode")
        for again in range(self.balancer.passes):
            for prepared, micro_batch, here in zip(
                ready, loaded.micro_batches, held.tolist(), strict=True
            ):
                losses = self._losses(prepared, micro_batch.area, loaded.areas, contributions, here)
                if not again:
                    total += losses
        dist.all_reduce(total)
        means = HostCopy(total / contributions)
        if meanwhile:
            meanwhile()
            self.timer.mark("data")
        balance = self.balancer.step()
        self.timer.mark("update")
        return [
            loss if here else None for loss, here in zip(means.get().tolist(), present, strict=True)
        ], balance

    def _losses(
        self,
        ready: Prepared,
        area: Tensor,
        global_areas: Tensor,
        contributions: int,
        held: Sequence[bool],
    ) -> Tensor:
        """Hand a micro-batch to the balancer; return its contributions to the losses, [K]."""
        objectives, mean_areas = self.denoising.objectives, global_areas / contributions
        pred = self.denoising.predict(self.balancer.model, ready)
        losses = objectives.losses(pred, *ready.target, mean_areas)
        sensitivity = None
        if self.balancer.measures:
            squares = objectives.sensitivity(pred, *ready.target, mean_areas)
            sensitivity = Sensitivity(squares, torch.where(area > 0, area / global_areas, area))
        self.timer.mark("forward")
        self.balancer.backward(losses, sensitivity, held)
        self.timer.mark("backward")
        return losses.detach().double()


def make_solver(config: Config) -> Solver:
    """Return the solver with a run's settings."""
    fairness = config.fairness
    return Solver(
        fairness.alpha,
        fairness.normalize,
        config.train.max_grad_norm,
        fairness.floor,
        fairness.keep,
        fairness.rule,
    )


def make_balancer(config: Config, engine: Engine) -> Balancer:
    """Return what `fairness.mode` names."""
    fairness = config.fairness
    count = 1 + len(config.objectives.regions)
    if fairness.mode == "sum":
        return FixedBalancer(engine, [1.0] * count)
    if fairness.mode == "global":
        return FixedBalancer(engine, [1.0] + [0.0] * (count - 1))
    if fairness.mode == "inverse_loss":
        return LossBalancer(engine, InverseLoss(count))
    if fairness.mode == "dwa":
        return LossBalancer(engine, DWA(count, fairness.dwa_window))
    if fairness.mode == "uncertainty":
        return LossBalancer(engine, Uncertainty(count))
    solver = make_solver(config)
    if fairness.mode == "exact":
        return ExactBalancer(engine, solver)
    forecast = Forecast(count, fairness.between, fairness.every)
    if fairness.mode == "amortized":
        return AmortizedBalancer(engine, solver, forecast)
    return SketchBalancer(engine, solver, forecast, fairness.sketch_size)
