"""`fairness.mode: inverse_loss`, `dwa`, `uncertainty`: weights from the losses of earlier steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fairhuman.common.transfer import HostCopy
from fairhuman.fairness.losses import LossRule
from fairhuman.training.balancers.base import Balance, FixedBalancer, Sensitivity
from fairhuman.training.balancers.loss_mean import LossMean
from fairhuman.zero.protocol import Engine


class LossBalancer(FixedBalancer):
    """One ordinary backward pass of sum_k w_k l_k, with weights that follow the losses.

    A step that is skipped teaches the rule nothing.
    """

    def __init__(self, engine: Engine, rule: LossRule) -> None:
        super().__init__(engine, [1.0] * rule.count)
        self.rule = rule
        self._losses = LossMean(engine.device)

    def start(self, present: Sequence[bool], micro_batches: int) -> None:
        """Begin a step, with the weights that earlier ones have left."""
        self.fixed = self.rule.weights(present)
        super().start(present, micro_batches)
        self._losses.start(micro_batches)

    def backward(
        self,
        losses: Tensor,
        sensitivity: Sensitivity | None = None,
        held: Sequence[bool] | None = None,
    ) -> None:
        """Run DeepSpeed's own backward, and note the losses."""
        self._losses.add(losses)
        super().backward(losses, sensitivity, held)

    def step(self) -> Balance:
        """Let DeepSpeed clip and step, then learn from the step's losses."""
        losses = HostCopy(self._losses.get())  # there when the step has waited for its norm
        balance = super().step()
        if not balance.skipped:
            self.rule.learn(losses.get().tolist())
        return balance

    def state_dict(self) -> dict[str, Any]:
        """Return what the losses have shown."""
        return self.rule.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what losses had shown."""
        self.rule.load_state_dict(state)
