"""The layers of a LoRA's file, whoever's keys it has: their matrices and what scales them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairhuman.common.errors import UserError
from fairhuman.models.formats.weights import Source, Weights

METADATA = "lora_adapter_metadata"
"""The key of a file's header under which diffusers keeps the adapters' settings."""
_DOWN = (".lora_A.weight", ".lora.down.weight", ".lora_linear_layer.down.weight")
_UP = (".lora_B.weight", ".lora.up.weight", ".lora_linear_layer.up.weight")
_KOHYA_DOWN, _KOHYA_UP = (".lora_down.weight",), (".lora_up.weight",)
_ALPHA = ".alpha"
_MAGNITUDE, _KOHYA_MAGNITUDE = (".lora_magnitude_vector",), (".dora_scale",)
PEFT_PARTS = {"down": _DOWN, "up": _UP, "magnitude": _MAGNITUDE}
KOHYA_PARTS = {"down": _KOHYA_DOWN, "up": _KOHYA_UP, "magnitude": _KOHYA_MAGNITUDE}


@dataclass(frozen=True)
class Layer:
    """One adapted layer: W + (alpha / rank) up @ down, its rows of DoRA's lengths if any."""

    down: Source
    up: Source
    alpha: float
    magnitude: Source | None = None

    @property
    def rank(self) -> int:
        """Rows of `down`."""
        return self.down.shape[0]


def layers_of(
    weights: Weights, endings: Mapping[str, tuple[str, ...]], path: Path
) -> dict[str, Layer]:
    """Return a file's layers by their names, in whichever keys.

    Args:
        weights: of the file.
        endings: of the keys, by what they are of a `Layer`.
        path: the file, for errors.

    Raises:
        UserError: it holds anything but a LoRA's or DoRA's layers, or half of one.
    """
    pairs: dict[str, dict[str, Source]] = {}
    alphas: dict[str, float] = {}
    for key, part in weights.tensors.items():
        for kind, known in endings.items():
            ending = next((ending for ending in known if key.endswith(ending)), None)
            if ending:
                pairs.setdefault(key.removesuffix(ending), {})[kind] = part
                break
        else:
            if not key.endswith(_ALPHA):
                raise UserError(
                    f"{path}: {key} is not a LoRA's; only LoRA and DoRA can be converted from "
                    "this form (no LoHa, LoKr or biases)"
                )
            alphas[key.removesuffix(_ALPHA)] = float(part.read())
    if not pairs:
        raise UserError(f"{path}: holds no LoRA")
    settings = adapter_settings(weights, path)
    layers = {}
    for name, pair in pairs.items():
        missing = next((part for part in ("down", "up") if part not in pair), None)
        if missing:
            raise UserError(f"{path}: {name} has no {missing} matrix")
        rank = pair["down"].shape[0]
        if rank != pair["up"].shape[1]:
            other = pair["up"].shape[1]
            raise UserError(f"{path}: {name}: its matrices are of ranks {rank} and {other}")
        layers[name] = Layer(
            pair["down"],
            pair["up"],
            alphas[name] if name in alphas else _alpha(settings, name, rank),
            pair.get("magnitude"),
        )
    return layers


def adapter_settings(weights: Weights, path: Path) -> dict[str, Any]:
    """Return peft's settings as diffusers packs them in the header: `component.field`.

    Raises:
        UserError: they are no JSON object.
    """
    try:
        settings = json.loads(weights.metadata.get(METADATA, "{}"))
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise UserError(f"{path}: the header's {METADATA} is not a JSON object")
    return settings


def _alpha(settings: Mapping[str, Any], layer: str, rank: int) -> float:
    """Return the alpha that peft's settings give a layer, as if it were divided by its rank."""
    component, _, name = layer.partition(".")
    alpha = settings.get(f"{component}.lora_alpha")
    for pattern, value in (settings.get(f"{component}.alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):  # peft's own rule
            alpha = value
            break
    if alpha is None:
        return float(rank)  # what diffusers takes where a file does not say
    if settings.get(f"{component}.use_rslora"):
        return float(alpha * rank**0.5)  # rsLoRA divides by the root
    return float(alpha)
