"""Counts what a rank sends: every collective of the process, whoever calls it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Bytes that a rank sends on a ring of N, over the bytes of the largest tensor of the call, which
# is the whole that is reduced, scattered or gathered.
_RING: dict[str, Callable[[int], float]] = {
    "allreduce_": lambda n: 2 * (n - 1) / n,
    "allreduce_coalesced_": lambda n: 2 * (n - 1) / n,
    "reduce_": lambda n: (n - 1) / n,
    "broadcast_": lambda n: (n - 1) / n,
    "_allgather_base_": lambda n: (n - 1) / n,
    "allgather_": lambda n: (n - 1) / n,
    "allgather_into_tensor_coalesced_": lambda n: (n - 1) / n,
    "_reduce_scatter_base_": lambda n: (n - 1) / n,
    "reduce_scatter_": lambda n: (n - 1) / n,
    "reduce_scatter_tensor_coalesced_": lambda n: (n - 1) / n,
    "alltoall_base_": lambda n: (n - 1) / n,
}


class Traffic(TorchDispatchMode):
    """Inside the block, `bytes` grows by what this rank sends.

    As a ring of the process group's ranks would send it (the convention of NCCL's "bus
    bandwidth"); trees and switches may send less. Collectives that are not known here raise.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        namespace, _, name = func._schema.name.partition("::")
        if namespace == "c10d" and name not in ("barrier", "monitored_barrier_"):
            size = max(_bytes(argument) for argument in args[:2])
            self.bytes += _RING[name](dist.get_world_size()) * size
        return func(*args, **(kwargs or {}))


def _bytes(argument: Any) -> int:
    """Return the bytes of a tensor, or of a (nested) list of them; 0 for anything else."""
    if isinstance(argument, Tensor):
        return argument.numel() * argument.element_size()
    if isinstance(argument, list | tuple):
        return sum(map(_bytes, argument))
    return 0
