"""The memory that tensors take at their highest, counted operation by operation, without memory.

On fake tensors, which have a shape and a storage but no data, a model of any size is run in
seconds and takes none of the memory that is counted.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class FakeMemory(TorchDispatchMode):
    """Counts the bytes of the storages that live, of all tensors made inside.

    A storage counts from the operation that makes it until its last tensor is gone, what autograd
    saves for the backward pass included. What an operation needs for itself while it runs, such as
    a convolution's workspace, is not seen.

    Args:
        known: tensors from before that are used inside and do not count.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.live = 0
        """Bytes, now."""
        self.peak = 0
        """Bytes, at their highest."""
        # By address: a storage's Python object may come and go while the storage stays.
        self._storages: dict[int, Any] = {}
        for tensor in known:
            storage = tensor.untyped_storage()
            self._storages[storage._cdata] = storage

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and take in what it returns."""
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._add(leaf.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        address = storage._cdata
        if address in self._storages:
            return
        size = storage.nbytes()

        def gone(_: Any) -> None:
            del self._storages[address]
            self.live -= size

        self._storages[address] = weakref.ref(storage, gone)
        self.live += size
        self.peak = max(self.peak, self.live)


def make_fake(module: nn.Module, dtype: torch.dtype, device: str = "cpu") -> None:
    """Replace the parameters and buffers of a module on the meta device by fake ones.

    Call it, and run the module, in one `FakeTensorMode`. There, unlike on the meta device, torch
    chooses operations as it does for real tensors: attention that keeps no score matrix.

    Args:
        module: on the meta device; changed in place.
        dtype: of its floating-point parameters from now on, as the trainer casts them.
        device: what they say they are on.
    """
    made: dict[Tensor, nn.Parameter] = {}  # tied ones stay tied
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is None:
                continue
            if parameter not in made:
                data = torch.empty(parameter.shape, dtype=dtype, device=device)
                made[parameter] = nn.Parameter(data, requires_grad=parameter.requires_grad)
            part._parameters[name] = made[parameter]
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)
