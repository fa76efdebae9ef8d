"""What FairHuman uses of DeepSpeed's engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Engine(Protocol):
    """A `deepspeed.DeepSpeedEngine`, which has no types of its own."""

    module: nn.Module
    optimizer: Any
    """DeepSpeed's, of one of `kinds.Kind`; the user's is its `optimizer`."""
    lr_scheduler: Any
    checkpoint_engine: Any
    param_names: Mapping[Tensor, str]
    config: dict[str, Any]
    global_steps: int
    global_samples: int
    skipped_steps: int

    @property
    def device(self) -> torch.device:
        """This rank's."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module's forward pass."""

    def backward(self, loss: Tensor, retain_graph: bool = False) -> Any:
        """Run a backward pass, under the loss scale, and reduce its gradients."""

    def step(self) -> None:
        """Step the optimizer and the schedule, at a boundary of accumulation."""

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None:
        """Say whether the next backward is the step's last."""

    def was_step_applied(self) -> bool:
        """Return whether the last step was taken, not skipped."""

    def zero_optimization_partition_weights(self) -> bool:
        """Return whether weights are sharded: ZeRO-3."""

    def fp16_enabled(self) -> bool:
        """Return whether the loss is scaled."""

    def get_lr(self) -> list[float]:
        """Return the learning rate of each parameter group."""

    def get_global_grad_norm(self) -> float | None:
        """Return the gradient's norm in the last step."""

    def gradient_clipping(self) -> float:
        """Return the norm that gradients are clipped to; 0 for none."""

    def gradient_accumulation_steps(self) -> int:
        """Return the number of a step's micro-batches."""

    def train_batch_size(self) -> int:
        """Return the global batch."""

    def save_checkpoint(self, save_dir: str, **kwargs: Any) -> Any:
        """Write all states; a collective."""

    def load_checkpoint(self, load_dir: str, **kwargs: Any) -> tuple[str | None, Any]:
        """Read all states; a collective."""

    def destroy(self) -> None:
        """Free what it holds."""
