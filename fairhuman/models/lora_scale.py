"""How much of a LoRA a pipeline draws with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fairhuman.models.parts import models_of


@contextmanager
def lora_scaled(pipeline: Any, scale: float | None) -> Iterator[None]:
    """Have a pipeline draw with `scale` times its active LoRA; None: as it is.

    In training too: nothing of what is trained is touched, and what was there comes back.
    """
    if scale is None:
        yield
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers: list[Any] = [
        layer
        for part in models_of(pipeline).values()
        for layer in part.modules()
        if isinstance(layer, BaseTunerLayer)
    ]
    before = [dict(layer.scaling) for layer in layers]
    try:
        for layer in layers:
            for adapter in layer.active_adapters:
                layer.set_scale(adapter, scale)
        yield
    finally:
        for layer, scaling in zip(layers, before, strict=True):
            layer.scaling.update(scaling)
