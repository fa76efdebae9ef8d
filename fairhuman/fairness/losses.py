"""Weights from the losses alone: rules of one backward pass, to compare with.

Each keeps what earlier steps have shown, so that the weights of a step are known before its
backward passes, and the same in all its micro-batches and on all ranks. In the first step all
weights are 1.
A loss that is no finite number above 0 teaches nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

MEMORY = 0.9
"""How much of its running mean a loss leaves in `InverseLoss`."""
TEMPERATURE = 2.0
"""Of `DWA`, as published."""
LOG_VARIANCE_LR = 0.01
"""Adam's learning rate for the log-variances of `Uncertainty`."""


class LossRule(ABC):
    """Weights of K losses from the losses of earlier steps.

    Args:
        count: K.
    """

    def __init__(self, count: int) -> None:
        self.count = count

    @abstractmethod
    def weights(self, present: Sequence[bool]) -> Tensor:
        """Return the next step's weights, [K] float64 on the host; 0 for what is absent."""

    def learn(self, losses: Sequence[float]) -> None:
        """Take in the [K] losses of a step that was taken; 0 for what was absent."""
        values = torch.tensor(losses, dtype=torch.float64)
        self._learn(values, (values > 0) & values.isfinite())

    @abstractmethod
    def _learn(self, losses: Tensor, known: Tensor) -> None:
        """Take in the losses, [K] float64, as far as they are `known`."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state: a few [K] tensors and counts, by name."""
        return {name: _copied(getattr(self, name)) for name in self._state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned; an empty one changes nothing.

        Raises:
            ValueError: it is that of another rule, or of another number of losses.
        """
        if not state:
            return
        if set(state) != set(self._state):
            raise ValueError(f"the state has {', '.join(state)}, not {', '.join(self._state)}")
        for name in self._state:
            own, value = getattr(self, name), state[name]
            if isinstance(own, Tensor) and value.shape != own.shape:
                raise ValueError(f"the state is of {len(value)} losses, not {self.count}")
            setattr(self, name, _copied(value))

    _state: tuple[str, ...] = ()

    def _zeros(self) -> Tensor:
        return torch.zeros(self.count, dtype=torch.float64)


class InverseLoss(LossRule):
    """Weights 1 / l_k, of a running mean of each loss; their own mean is 1.

    Equal relative progress for all: in expectation the gradient of sum_k log l_k, but that a step's
    own losses are not known before its backward pass.
    """

    _state = ("means",)

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.means = self._zeros()  # 0: never seen

    def weights(self, present: Sequence[bool]) -> Tensor:
        """Return them; a loss that was never seen has weight 1."""
        here = torch.tensor(present)
        known = here & (self.means > 0)
        weights = here.double()
        weights[known] = 1.0 / self.means[known]
        weights[known] /= weights[known].mean()
        return weights

    def _learn(self, losses: Tensor, known: Tensor) -> None:
        mixed = torch.where(self.means > 0, torch.lerp(losses, self.means, MEMORY), losses)
        self.means = torch.where(known, mixed, self.means)


class DWA(LossRule):
    """Dynamic weight averaging (arXiv 1803.10704): more weight for the loss that falls less.

    With L_k the mean of loss k over a window of steps, r_k = L_k(t - 1) / L_k(t - 2) and
    temperature 2, w_k = K exp(r_k / 2) / sum_j exp(r_j / 2) over the K present losses. The
    published windows are epochs.

    Args:
        count: K.
        window: steps per mean.
    """

    _state = ("sums", "counts", "last", "before", "steps")

    def __init__(self, count: int, window: int = 25) -> None:
        super().__init__(count)
        self.window = window
        self.sums = self._zeros()
        self.counts = self._zeros()
        self.last = self._zeros()  # 0: not known yet
        self.before = self._zeros()
        self.steps = 0

    def weights(self, present: Sequence[bool]) -> Tensor:
        """Return them; all are 1 until two windows are over."""
        here = torch.tensor(present)
        ratios = torch.where(self.before > 0, self.last / self.before, 1.0)
        weights = self._zeros()
        weights[here] = int(here.sum()) * (ratios[here] / TEMPERATURE).softmax(0)
        return weights

    def _learn(self, losses: Tensor, known: Tensor) -> None:
        self.sums = self.sums + torch.where(known, losses, 0.0)
        self.counts = self.counts + known
        self.steps += 1
        if self.steps < self.window:
            return
        seen = self.counts > 0  # a loss that was absent in the whole window keeps its ratio
        self.before = torch.where(seen, self.last, self.before)
        self.last = torch.where(seen, self.sums / self.counts, self.last)
        self.sums, self.counts, self.steps = self._zeros(), self._zeros(), 0


class Uncertainty(LossRule):
    """Uncertainty weighting (arXiv 1705.07115): sum_k exp(-s_k) l_k + s_k, minimised in s_k too.

    s_k, the log-variance, starts at 0. Adam has a learning rate of its own for it, because that of
    fine-tuning would hardly move it. A step's weights are exp(-s_k) before its update, as in joint
    training; the log-variance of what is absent stays.
    """

    _state = ("log_variances", "first", "second", "updates")

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.log_variances = self._zeros()
        self.first = self._zeros()  # Adam's moments, and how often each was updated
        self.second = self._zeros()
        self.updates = self._zeros()

    def weights(self, present: Sequence[bool]) -> Tensor:
        """Return them."""
        return (-self.log_variances).exp() * torch.tensor(present)

    def _learn(self, losses: Tensor, known: Tensor) -> None:
        # By hand, because torch's Adam counts steps per tensor, and some of these may be absent.
        beta1, beta2, eps = 0.9, 0.999, 1e-8
        gradient = 1.0 - (-self.log_variances).exp() * losses
        updates = self.updates + 1
        first = torch.lerp(gradient, self.first, beta1)
        second = torch.lerp(gradient**2, self.second, beta2)
        corrected = (second / (1 - beta2**updates)).sqrt() + eps
        moved = self.log_variances - LOG_VARIANCE_LR * first / (1 - beta1**updates) / corrected
        new = {"log_variances": moved, "first": first, "second": second, "updates": updates}
        for name, values in new.items():
            setattr(self, name, torch.where(known, values, getattr(self, name)))


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
