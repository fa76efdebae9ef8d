"""Shards of ZeRO-1 and ZeRO-2 with the optimizer offloaded to the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from fairhuman.zero.access import ShardAccess


class OffloadedStage12Shards(ShardAccess):
    """One flat tensor per parameter group, from the CPU's float32 gradients."""

    needs: ClassVar[tuple[str, ...]] = (
        "averaged_gradients",
        "bit16_groups",
        "loss_scale",
        "single_partition_of_fp32_groups",
        "params_in_partition",
        "grad_position",
        "get_param_id",
        "norm_for_param_grads",
        "local_overflow",
        "micro_step_id",
    )

    def zeros(self) -> list[Tensor]:
        """Return a shard on the CPU."""
        return [
            torch.zeros_like(partition.grad, dtype=torch.float32)
            for partition in self.optimizer.single_partition_of_fp32_groups
        ]

    def read(self) -> list[Sequence[Tensor]]:
        """Return each group's gradient; the copies from the device are over by then."""
        from deepspeed.accelerator import get_accelerator

        get_accelerator().synchronize()
        return [[partition.grad] for partition in self.optimizer.single_partition_of_fp32_groups]

    def reset(self) -> None:
        """Forget gradients, norms, and that there was a micro-batch: the next one must not add."""
        from deepspeed.runtime.zero.stage_1_and_2 import INITIAL_MICRO_STEP_ID

        zero = self.optimizer
        for i, group in enumerate(zero.bit16_groups):
            zero.averaged_gradients[i] = None
            for parameter in group:
                parameter.grad = None
                parameter.grad_accum = None
        for partition in zero.single_partition_of_fp32_groups:
            partition.grad.zero_()
        zero.micro_step_id = INITIAL_MICRO_STEP_ID
        zero._offload_accumulated_param_ids = set()
        zero.norm_for_param_grads = {}
        zero.local_overflow = False

    def write(self, shard: list[Tensor]) -> None:
        """Write gradients and the norms by which DeepSpeed tells whether to skip the step."""
        zero = self.optimizer
        for partition, part, parameters in zip(
            zero.single_partition_of_fp32_groups, shard, zero.params_in_partition, strict=True
        ):
            partition.grad.copy_(part.view_as(partition.grad))
            for parameter in parameters:
                key = zero.get_param_id(parameter)
                _, _, start, count = zero.grad_position[key]
                zero.norm_for_param_grads[key] = part[start : start + count].norm()
            zero.local_overflow |= not bool(torch.isfinite(part).all())

    def rescale(self, factor: float) -> None:
        """Multiply gradients and norms."""
        super().rescale(factor)
        norms = self.optimizer.norm_for_param_grads
        for key in norms:
            norms[key] = norms[key] * factor
