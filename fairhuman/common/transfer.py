"""Copies between host and device that nobody waits for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; the host does not wait for the copy."""
    if tensor.device == device:
        return tensor
    if queues(device) and not queues(tensor.device):
        tensor = tensor.pin_memory()  # from pageable memory, the host would wait
    return tensor.to(device, non_blocking=True)


class HostCopy:
    """A tensor on its way to the host, behind all that its device was given before."""

    def __init__(self, tensor: Tensor) -> None:
        self._arrived: Any = None
        if queues(tensor.device):
            self._tensor = torch.empty_like(tensor, device="cpu", pin_memory=True)
            self._tensor.copy_(tensor, non_blocking=True)
            self._arrived = recorded(tensor.device)
        else:
            self._tensor = tensor.clone()

    def get(self) -> Tensor:
        """Return it; waits if it is not there yet."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._tensor


def arrived(copy: HostCopy | None) -> Tensor | None:
    """Return what was copied, if anything was; waits if it is not there yet."""
    return copy.get() if copy else None


def queues(device: torch.device) -> bool:
    """Return whether the host goes on while the device works: true of all but the CPU."""
    return device.type != "cpu"


def recorded(device: torch.device, timed: bool = False) -> Any:
    """Return an event, such as a `torch.cuda.Event`, behind all that a device was given before."""
    event = torch.get_device_module(device).Event(enable_timing=timed)
    event.record()
    return event
