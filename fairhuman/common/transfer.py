"""Copies between host and device that nobody waits for."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; the host does not wait for the copy."""
    if tensor.device == device:
        return tensor
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()  # from pageable memory, the host would wait
    return tensor.to(device, non_blocking=True)


class HostCopy:
    """A tensor on its way to the host, behind all that its device was given before."""

    def __init__(self, tensor: Tensor) -> None:
        self._arrived: torch.cuda.Event | None = None
        if tensor.is_cuda:
            self._tensor = torch.empty_like(tensor, device="cpu", pin_memory=True)
            self._tensor.copy_(tensor, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()
        else:
            self._tensor = tensor.clone()

    def get(self) -> Tensor:
        """Return it; waits if it is not there yet."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._tensor
