"""Shards of the optimizer that DeepSpeed chooses for ZeRO-1 with bf16 and float32 gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor

from fairhuman.zero.access import ShardAccess


class BF16Shards(ShardAccess):
    """One flat tensor per parameter group: this rank's part of the whole float32 gradient.

    The optimizer itself keeps the whole of one gradient on every rank, which ZeRO-2 does not.
    """

    needs = (
        "fp32_groups_gradient_flat_partition",
        "fp32_groups_gradients_flat",
        "fp32_groups_has_gradients",
        "real_dp_process_group",
        "zero_grad",
    )

    def zeros(self) -> list[Tensor]:
        """Return a shard on the parameters' device."""
        return [part.new_zeros(part.shape) for part in self._parts()]

    def read(self) -> list[Sequence[Tensor]]:
        """Return this rank's part of each group's averaged gradient."""
        return [[part] for part in self._parts()]

    def reset(self) -> None:
        """Zero the float32 gradients and drop those in bf16, which would be added to them."""
        self.optimizer.zero_grad(set_to_none=True)

    def write(self, shard: list[Tensor]) -> None:
        """Give every rank the whole gradient: DeepSpeed takes its norm without a collective."""
        zero = self.optimizer
        for i, part in enumerate(shard):
            whole = zero.fp32_groups_gradients_flat[i]
            dist.all_gather_into_tensor(whole, part, group=zero.real_dp_process_group[i])
            zero.fp32_groups_has_gradients[i] = [True] * len(zero.fp32_groups_has_gradients[i])

    def rescale(self, factor: float) -> None:
        """Multiply the whole gradient, of which this rank's part is a view."""
        for whole in self.optimizer.fp32_groups_gradients_flat:
            whole.mul_(factor)

    def loss_scale(self) -> float:
        """Return 1: bf16 needs no scale, and this optimizer has none."""
        return 1.0

    def _parts(self) -> list[Tensor]:
        parts: list[Tensor] = self.optimizer.fp32_groups_gradient_flat_partition
        return parts
