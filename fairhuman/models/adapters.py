"""The kinds of low-rank adapters that peft has, by `model.lora.kind`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from fairhuman.config import Lora
from fairhuman.models.external_weights import announce

ADAPTER = "default"
"""What the adapters that are trained are called in peft."""


def adapt(model: Any, targets: Sequence[str], settings: Lora) -> None:
    """Add adapters to a model of diffusers or transformers, and train them alone.

    They change nothing at first: B is 0, of LoHa the second product's first factor, of LoKr the
    second factor (LyCORIS' way), and DoRA's magnitudes are the norms of the weight's rows.
    """
    config = _config(targets, settings)
    model.add_adapter(config, ADAPTER)
    # transformers puts the model's place on this machine there, and it would be published.
    config.base_model_name_or_path = None
    for layer in model.modules():
        _announce(layer)


def own_name(model: Any, layer: str) -> str:
    """Return what a layer that `_text_name` has named is called in this model."""
    return layer if hasattr(model, "text_model") else layer.removeprefix("text_model.")


def _config(targets: Sequence[str], settings: Lora) -> Any:
    from peft import LoHaConfig, LoKrConfig, LoraConfig

    rank, kind = settings.rank, settings.kind
    alpha: Any = rank if settings.alpha is None else settings.alpha
    common: dict[str, Any] = {"r": rank, "target_modules": list(targets)}
    if kind == "loha":
        return LoHaConfig(alpha=alpha, **common)
    if kind == "lokr":
        return LoKrConfig(
            alpha=alpha,
            decompose_factor=-1 if settings.factor is None else settings.factor,
            init_weights="lycoris",
            **common,
        )
    return LoraConfig(
        lora_alpha=alpha,
        init_lora_weights="gaussian",
        use_dora=kind == "dora",
        use_rslora=kind == "rslora",
        **common,
    )


def _announce(layer: nn.Module) -> None:
    """Announce what an adapted layer reads of others: DoRA for its norms, LyCORIS for products."""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lycoris_utils import LycorisLayer

    if isinstance(layer, LoraLayer) and ADAPTER in layer.lora_magnitude_vector:
        reader: Any = layer.lora_magnitude_vector[ADAPTER]
        factors: list[Any] = [layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]]
        announce(reader, [layer.get_base_layer().weight, *(part.weight for part in factors)])
    elif isinstance(layer, LycorisLayer):
        # Of the base layer's weight they read the shape, which ZeRO-3 takes away too.
        own = [p for name in layer.adapter_layer_names for p in getattr(layer, name).values()]
        announce(layer, [layer.get_base_layer().weight, *own])
