"""Shards of ZeRO-3, with optimizer and parameters on the device or offloaded to the CPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor

from fairhuman.zero.access import ShardAccess
from fairhuman.zero.protocol import Engine

# What ZeRO-3 counts down in each module to know when to fetch and release its weights in the
# backward pass. It counts up in the forward pass only, so a second backward over the same graph
# would find its weights gone.
_COUNTERS = ("applied_pre_backward_ref_cnt", "ds_grads_remaining")


class Stage3Shards(ShardAccess):
    """One flat tensor: the averaged gradients of all parameters, one after the other."""

    needs: ClassVar[tuple[str, ...]] = (
        "grad_partitions_flat_buffer",
        "averaged_gradients",
        "zero_grad",
        "loss_scale",
    )

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._marks: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def zeros(self) -> list[Tensor]:
        """Return a shard on the optimizer's device."""
        return [torch.zeros_like(self._buffer(), dtype=torch.float32)]

    def read(self) -> list[Sequence[Tensor]]:
        """Return the buffer to which DeepSpeed reduces."""
        return [[self._buffer()]]

    def reset(self) -> None:
        """Zero the buffer: a backward writes only the parameters that it reaches."""
        self._buffer().zero_()
        self.optimizer.zero_grad()

    def write(self, shard: list[Tensor]) -> None:
        """Fill the buffer, which `averaged_gradients` shows part by part."""
        self._buffer().copy_(shard[0])

    def mark(self) -> None:
        """Remember every module's counters."""
        self._marks = [
            (
                module.__dict__,
                {name: module.__dict__[name] for name in _COUNTERS if name in module.__dict__},
            )
            for module in self.engine.module.modules()
        ]

    def rewind(self) -> None:
        """Put every module's counters back."""
        for attributes, counters in self._marks:
            attributes.update(counters)

    def _buffer(self) -> Tensor:
        buffer: Tensor = self.optimizer.grad_partitions_flat_buffer
        return buffer


class OffloadedStage3Shards(Stage3Shards):
    """The same buffer, on the CPU; the step takes its gradients from copies in float32."""

    needs = (
        *Stage3Shards.needs,
        "fp32_partitioned_groups_flat",
        "fp16_groups",
        "grad_position",
        "get_param_id",
        "norm_for_param_grads",
    )

    def write(self, shard: list[Tensor]) -> None:
        """Write gradients and the norms by which DeepSpeed tells whether to skip the step."""
        super().write(shard)  # fp16's check for overflow looks here
        zero = self.optimizer
        sizes = [group.numel() for group in zero.fp32_partitioned_groups_flat]
        parts = shard[0].split(sizes)
        for group, part in zip(zero.fp32_partitioned_groups_flat, parts, strict=True):
            group.grad.copy_(part)
        for parameter in (parameter for group in zero.fp16_groups for parameter in group):
            key = zero.get_param_id(parameter)
            index, start, count = zero.grad_position[key]
            zero.norm_for_param_grads[key] = parts[index][start : start + count].norm()

    def rescale(self, factor: float) -> None:
        """Multiply the buffer, and give the step copies of all of it.

        DeepSpeed has copied the parameters that were reached; the others hold what an earlier
        step left there.
        """
        super().rescale(factor)
        self.write([self._buffer()])


@contextmanager
def whole_weights(engine: Engine) -> Iterator[None]:
    """Have all weights of a ZeRO-3 engine's module on every rank, and no collective in its forward.

    Entering and leaving are collectives. Inside, any rank may run the module alone, without
    gradients; nobody may change a weight.
    """
    import deepspeed

    offload = engine.optimizer.parameter_offload
    whole = deepspeed.zero.GatheredParameters(list(engine.module.parameters()), modifier_rank=None)
    whole.__enter__()
    offload._remove_module_hooks()
    offload.forward_hooks, offload.backward_hooks = [], []
    yield
    # Not after an error, which ends the run: the other ranks may never join this collective.
    offload.setup_zero_stage3_hooks()
    whole.__exit__(None, None, None)
