"""`fairness.mode: sketch`: the weights from sketches of the gradients, the step from one backward.

For where K gradients have no room: each local gradient is sketched tensor by tensor as autograd
produces it, and dropped. What crosses the network is K * m numbers; then one ordinary backward
pass of sum_k w_k l_k goes through DeepSpeed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fairhuman.fairness import ops
from fairhuman.fairness.forecast import Forecast
from fairhuman.fairness.solve import Solver
from fairhuman.models.recompute import SharedBlocks, share_recomputation
from fairhuman.training.balancers.amortized import ForecastStep, Watch
from fairhuman.training.balancers.base import (
    Balance,
    Balancer,
    Sensitivity,
    of_gram,
    present_losses,
)
from fairhuman.training.balancers.loss_mean import LossMean
from fairhuman.zero import Gradients, make_gradients
from fairhuman.zero.gradients import with_more
from fairhuman.zero.protocol import Engine

PENDING = 1 << 25
"""Elements of gradients that wait to be sketched together: a launch for many parameters."""


class SketchBalancer(Balancer):
    """Weights solved on the Gram matrix of CountSketches; every ZeRO stage, any offload.

    A measured step makes K + 1 backward passes. With one micro-batch they share one graph; with
    several, keeping all graphs would take their memory, so the micro-batches are gone through
    twice (the same noise: `Balancer.passes`), which costs one more forward pass of the UNet.
    Between measurements, if `fairness.refresh_every` is above 1, a step is that of `amortized`.
    """

    def __init__(self, engine: Engine, solver: Solver, forecast: Forecast, size: int) -> None:
        super().__init__(engine)
        # Without steps in between, nothing is to be forecast.
        follows = forecast.rule == "calibrated" or solver.needs_losses
        self.measures = follows and forecast.every > 1
        self.forecast = forecast
        self.gradients = make_gradients(engine)
        self.forecast_step = ForecastStep(self.gradients, solver, forecast)
        self.sketches = Sketches(self.gradients, size)
        self._watch = Watch(engine.device)
        self._losses = LossMean(engine.device)
        self._means: Tensor | None = None
        self._present: list[bool] = []
        self._measured: dict[str, Any] | None = None
        self._micro_batches = 0
        self._unsketched = 0

    @property
    def passes(self) -> int:
        """Two where several micro-batches are measured."""
        return 2 if self._unsketched and self._micro_batches > 1 else 1

    @property
    def model(self) -> Callable[..., Any]:
        """The bare module for what is sketched, else what the gradients need to be called."""
        return self.sketches.model if self._unsketched else self.gradients.model

    def start(self, present: Sequence[bool], micro_batches: int) -> None:
        """Begin a step, a measured one if it is time."""
        self._present = list(present)
        self._micro_batches = micro_batches
        self._unsketched = micro_batches if self.forecast.due(present) else 0
        self._measured = None
        self._watch.start()
        self._losses.start(micro_batches)
        self._means = None
        self.sketches.start(sum(present))
        self.forecast_step.start(present, micro_batches)

    def backward(
        self,
        losses: Tensor,
        sensitivity: Sensitivity | None = None,
        held: Sequence[bool] | None = None,
    ) -> None:
        """Sketch a micro-batch's gradients, or take its weighted gradient, or both."""
        if self._unsketched:
            self._unsketched -= 1
            self._watch.add(sensitivity)
            self._losses.add(losses)
            alone = self._micro_batches == 1
            present = present_losses(losses / self._micro_batches, self._present, held)
            self.sketches.add(present, keep_graph=alone)
            if not self._unsketched:
                if self.forecast_step.solver.needs_losses:
                    self._means = self._losses.get()
                self.forecast_step.solve(self.sketches.gram(), self._means)
                self._measured = of_gram(self.forecast_step.gram, self._present)
            if not alone:
                return
        self.forecast_step.backward(losses, sensitivity)

    def step(self) -> Balance:
        """Move along d, with its true length."""
        sensitivities = self._watch.total()  # there when the step has waited for its norm
        balance = self.forecast_step.step(self._measured)
        if self._measured is not None and not balance.skipped:
            found = sensitivities.get() if sensitivities else None
            losses = None if self._means is None else self._means.cpu()
            self.forecast.learn(balance.grad_norms, balance.cosines, found, losses)
        return balance

    def state_dict(self) -> dict[str, Any]:
        """Return what the measurements have shown."""
        return self.forecast.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what measurements had shown."""
        self.forecast.load_state_dict(state)


class Sketches:
    """The sketches of K gradients, summed over micro-batches and ranks."""

    def __init__(self, gradients: Gradients, size: int) -> None:
        self.gradients = gradients
        self._size = size
        self._places: list[tuple[Tensor, int]] = []
        """Each trained parameter, and the index of its first element among all."""
        count = 0
        for p in gradients.engine.module.parameters():
            if p.requires_grad:
                self._places.append((p, count))
                count += getattr(p, "ds_numel", p.numel())  # ZeRO-3 leaves p empty
        # ZeRO-3 gathers a block's weights as autograd comes to it.
        sharded = gradients.engine.zero_optimization_partition_weights()
        self._blocks = None if sharded else share_recomputation(gradients.engine.module)
        self._rows = torch.zeros(0)

    def start(self, count: int) -> None:
        """Begin a step of `count` objectives."""
        self._rows = torch.zeros(
            count, self._size, dtype=torch.float64, device=self.gradients.engine.device
        )

    def model(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module itself: DeepSpeed's engine takes any backward for that of a step."""
        self.gradients.forget_backward()
        module = self.gradients.engine.module
        return (
            self._blocks.call(module, *args, **kwargs) if self._blocks else module(*args, **kwargs)
        )

    def add(self, losses: Sequence[Tensor | None], keep_graph: bool) -> None:
        """Add the sketches of a micro-batch's local gradients, those of losses of one graph."""
        # Half-precision gradients need the loss scale as in any backward pass.
        scale = self.gradients.loss_scale()
        scaled = [None if loss is None else loss * scale for loss in losses]
        if self._blocks:
            self._add_together(self._blocks, scaled, keep_graph)
        else:
            self._add_in_turn(scaled, keep_graph)

    def _add_together(
        self, blocks: SharedBlocks, losses: Sequence[Tensor | None], keep_graph: bool
    ) -> None:
        there = [(loss, _Pending(self._rows[k])) for k, loss, _ in with_more(losses)]
        starts = dict(self._places)

        def take(p: Tensor, gradients: Sequence[Tensor | None]) -> None:
            for (_, pending), gradient in zip(there, gradients, strict=True):
                if gradient is not None:
                    pending.add(gradient, starts[p])

        blocks.backward([loss for loss, _ in there], list(starts), take, keep_graph)
        for _, pending in there:
            pending.flush()

    def _add_in_turn(self, losses: Sequence[Tensor | None], keep_graph: bool) -> None:
        self.gradients.mark()
        for k, loss, more in with_more(losses):
            with self._hooked(_Pending(self._rows[k])):
                # No hook of DeepSpeed's runs here: they wait for gradients to be accumulated.
                torch.autograd.grad(
                    loss,
                    [p for p, _ in self._places],
                    retain_graph=keep_graph or more,
                    allow_unused=True,
                )
            if keep_graph or more:
                self.gradients.rewind()

    def gram(self) -> Tensor:
        """Return the Gram matrix of the sketches, averaged over the ranks, [K, K] float64.

        A collective; free of the loss scale, the same bits on every rank.
        """
        dist.all_reduce(self._rows)
        divisor = self.gradients.loss_scale() * dist.get_world_size()
        return ops.gram(self._rows / divisor)

    @contextmanager
    def _hooked(self, pending: _Pending) -> Iterator[None]:
        """Have every gradient sketched and replaced by a zero that takes no memory."""

        def take(start: int) -> Callable[[Tensor], Tensor]:
            def hook(gradient: Tensor) -> Tensor:
                pending.add(gradient, start)
                return gradient.new_zeros(()).expand(gradient.shape)

            return hook

        with ExitStack() as handles:
            for p, start in self._places:
                handles.callback(p.register_hook(take(start)).remove)
            yield
        pending.flush()


class _Pending:
    """Gradients of one objective that wait to be sketched together."""

    def __init__(self, row: Tensor) -> None:
        self._row = row
        self._gradients: list[Tensor] = []
        self._starts: list[int] = []
        self._count = 0

    def add(self, gradient: Tensor, start: int) -> None:
        """Take a gradient whose first element is the parameters' at `start`."""
        self._gradients.append(gradient)
        self._starts.append(start)
        self._count += gradient.numel()
        if self._count >= PENDING:
            self.flush()

    def flush(self) -> None:
        """Sketch them."""
        ops.add_sketch(self._row, self._gradients, self._starts)
        self._gradients, self._starts, self._count = [], [], 0
