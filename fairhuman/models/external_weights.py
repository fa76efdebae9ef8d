"""Weights that one module reads and another owns, which ZeRO-3 has to be told of."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn


def announce(reader: nn.Module, weights: Iterable[Any]) -> None:
    """Have ZeRO-3 fetch parameters before a module that reads them without calling their owner.

    Where one is on its way already, DeepSpeed's own search for such weights passes over it.
    """
    import deepspeed

    for weight in weights:
        deepspeed.zero.register_external_parameter(reader, weight)
