"""Losses under `torch.amp.GradScaler`: its scale, and losses that carry one by mistake."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.amp import GradScaler

_DEPTH = 4
"""Last operations of a loss that are looked at: a scaled loss may be unbound, or divided."""
_searches = 5
"""How often the process may still be searched for a scaler, which takes a tenth of a second. A loop
that scales its losses does it from its first step on."""


def active(scaler: GradScaler | None) -> GradScaler | None:
    """Return the scaler if it scales at all."""
    return scaler if scaler is not None and scaler.is_enabled() else None


def scale_of(scaler: GradScaler, device: torch.device) -> Tensor:
    """Return a scaler's scale, 0-d float64, without waiting for the device."""
    one: Tensor = scaler.scale(torch.ones((), device=device))
    return one.double()


def refuse_scaled(losses: Sequence[Tensor], scaler: GradScaler | None) -> None:
    """Refuse losses that `GradScaler.scale` has scaled already, as far as their graphs show it.

    They show it where the scaling is among a loss's last operations: a multiplication by a 0-d
    tensor that is equal to the scale of `scaler`, or, without one, of any scaler in the process.
    Only where there is such a multiplication the host waits for the device, to read it.

    Raises:
        ValueError: a loss is scaled.
    """
    factors = [(k, factor) for k, loss in enumerate(losses) for factor in _factors(loss)]
    if not factors:
        return
    scales = {s.get_scale() for s in ([scaler] if scaler else _scalers())} - {1.0}
    for k, factor in factors if scales else ():
        if float(factor) in scales:
            raise ValueError(
                f"losses[{k}] is scaled already: give the losses as they are, and the GradScaler "
                "as fair_backward(…, scaler=scaler)"
            )


def _factors(loss: Tensor) -> Iterator[Tensor]:
    """Yield the 0-d float32 constants that a loss was multiplied by in its last operations."""
    node = loss.grad_fn
    for _ in range(_DEPTH):
        if node is None:
            return
        factor = getattr(node, "_saved_other", None) if node.name() == "MulBackward0" else None
        if isinstance(factor, Tensor) and factor.ndim == 0 and factor.dtype == torch.float32:
            yield factor.detach()
        inputs = [source for source, _ in node.next_functions if source is not None]
        node = inputs[0] if len(inputs) == 1 else None


def _scalers() -> list[GradScaler]:
    """Return the process's scalers that are in use; none after a few fruitless searches."""
    global _searches
    if _searches == 0:
        return []
    _searches -= 1
    # By the type alone: some objects answer isinstance with an error.
    found = [o for o in gc.get_objects() if issubclass(type(o), GradScaler)]
    return [s for s in found if s.is_enabled() and s._scale is not None]
