"""Weights that one module reads and another owns, which ZeRO-3 has to be told of."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


def announce(reader: nn.Module, weights: Iterable[nn.Parameter]) -> None:
    """Have ZeRO-3 fetch weights before a module that reads them without calling their owner.

    Where one is on its way already, DeepSpeed's own search for such weights passes over it.
    """
    import deepspeed

    for weight in weights:
        deepspeed.zero.register_external_parameter(reader, weight)
