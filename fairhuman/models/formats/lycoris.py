"""LoKr and LoHa from peft's layout to the keys of LyCORIS, which ComfyUI loads.

A layer's tensors are called the same in both; LyCORIS' layers have kohya's names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fairhuman.common.errors import UserError
from fairhuman.models.formats.lora_names import LoraNames
from fairhuman.models.formats.weights import Source

_FACTORS = {
    "lokr": ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b"),
    "hada": ("w1_a", "w1_b", "w2_a", "w2_b"),
}


def is_lycoris(name: str) -> bool:
    """Whether a tensor's name is that of a part of LoKr or LoHa."""
    return ".lokr_" in name or ".hada_" in name


def to_lycoris(
    parts: Mapping[str, Source], settings: Mapping[str, Any], names: LoraNames, path: Path
) -> tuple[dict[str, Source], list[int], list[float]]:
    """Return a LoKr's or LoHa's tensors by LyCORIS' keys, with each layer's rank and alpha.

    Args:
        parts: peft's.
        settings: the adapters', as diffusers packs them: `component.field`.
        names: the layers'.
        path: the file, for errors.

    Raises:
        UserError: it holds anything else, or lacks its settings.
    """
    layers: dict[str, dict[str, Source]] = {}
    for key, part in parts.items():
        layer, _, name = key.rpartition(".")
        kind, _, factor = name.partition("_")
        if factor not in _FACTORS.get(kind, ()):
            raise UserError(f"{path}: {key} is not a LoKr's or LoHa's; only these can be converted")
        layers.setdefault(layer, {})[name] = part
    tensors: dict[str, Source] = {}
    ranks, alphas = [], []
    for layer, factors in layers.items():
        rank, alpha = _rank_and_alpha(settings, layer, path)
        if {"lokr_w1", "lokr_w2"} <= factors.keys():
            # Of two whole factors nobody reads an alpha: LyCORIS' scaling of these is 1.
            factors["lokr_w1"] = _scaled(factors["lokr_w1"], alpha / rank)
            alpha = float(rank)
        kohya = names.to_kohya(layer)
        tensors |= {f"{kohya}.{name}": part for name, part in factors.items()}
        tensors[f"{kohya}.alpha"] = scalar(alpha)
        ranks.append(rank)
        alphas.append(alpha)
    return tensors, ranks, alphas


def _rank_and_alpha(settings: Mapping[str, Any], layer: str, path: Path) -> tuple[int, float]:
    component = layer.partition(".")[0]
    rank, alpha = settings.get(f"{component}.r"), settings.get(f"{component}.alpha")
    patterns = [settings.get(f"{component}.{key}_pattern") for key in ("rank", "alpha")]
    if not isinstance(rank, int) or not isinstance(alpha, (int, float)) or rank < 1:
        raise UserError(f"{path}: its header says neither rank nor alpha of {component}'s layers")
    if any(patterns):
        raise UserError(f"{path}: {component}: ranks or alphas per layer cannot be converted")
    return rank, float(alpha)


def scalar(value: float) -> Source:
    """Return a float32 number as a tensor of a file."""
    return Source((), torch.float32, lambda: torch.tensor(value))


def _scaled(part: Source, factor: float) -> Source:
    if factor == 1:
        return part
    return Source(part.shape, part.dtype, lambda: (part.read().float() * factor).to(part.dtype))
