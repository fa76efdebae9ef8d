"""Starts a LoRA's training from an existing one: `model.lora.weights`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fairhuman.common.hub import Named
from fairhuman.config import Lora
from fairhuman.models.adapters import ADAPTER, own_name
from fairhuman.models.formats.kinds import LORA, file_kind
from fairhuman.models.formats.lora import is_kohya
from fairhuman.models.formats.lora_layers import METADATA
from fairhuman.models.formats.weights import Weights, open_weights
from fairhuman.models.lora_file import find_lora

# peft's names of what must be as in the config.
_SETTINGS = {"r": "rank", "lora_alpha": "alpha", "alpha": "alpha"}


def check_start(settings: Lora) -> None:
    """Check that the LoRA to start from is one of these settings, before the model is loaded.

    Args:
        settings: the section `model.lora`, with `weights`.

    Raises:
        ConfigError: it is not there, is no LoRA in diffusers' layout, or has another rank or alpha.
    """
    named = _named(settings)
    with open_weights(find_lora(named)) as weights:
        kind = file_kind(weights.tensors)
        if kind is None or kind.name != LORA:
            named.refuse(f"is {kind or 'no LoRA'}")
        if is_kohya(weights):
            named.refuse("has kohya's keys: convert it first (fairhuman export --to diffusers)")
        _check_settings(named, weights, settings)


def load_start(adapted: Mapping[str, Any], settings: Lora) -> None:
    """Give new adapters the weights of the LoRA to start from.

    Args:
        adapted: the models that have adapters, by their names in the pipeline.
        settings: the section `model.lora`, with `weights`.

    Raises:
        ConfigError: it has other layers, or other shapes.
    """
    from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

    named = _named(settings)
    with open_weights(find_lora(named)) as weights:
        left = set(weights.tensors)
        for component, model in adapted.items():
            start = f"{component}."
            own = {
                own_name(model, name.removeprefix(start)): name
                for name in weights.tensors
                if name.startswith(start)
            }
            wanted = get_peft_model_state_dict(
                model, adapter_name=ADAPTER, save_embedding_layers=False
            )
            for name, tensor in wanted.items():
                if name not in own:
                    named.refuse(
                        f"has no {start}{name}: its kind or its layers are not the config's"
                    )
                shape = weights.tensors[own[name]].shape
                if shape != tuple(tensor.shape):
                    named.refuse(
                        f"its {start}{name} is of shape {list(shape)}, and the config's of "
                        f"{list(tensor.shape)}"
                    )
            left -= {own[name] for name in wanted}
            set_peft_model_state_dict(
                model, {name: weights.tensors[own[name]].read() for name in wanted}, ADAPTER
            )
    if left:
        named.refuse(
            f"has {min(left)}, which the config does not train: see model.lora.targets and "
            "text_encoders"
        )


def _named(settings: Lora) -> Named:
    return Named("model.lora.weights", str(settings.weights))


def _check_settings(named: Named, weights: Weights, settings: Lora) -> None:
    """Compare the rank and the alpha that the header tells, where it does, with the config's."""
    try:
        told = json.loads(weights.metadata.get(METADATA, "{}"))
    except ValueError:
        named.refuse(f"the header's {METADATA} is not JSON")
    alpha = settings.rank if settings.alpha is None else settings.alpha
    own = {"rank": settings.rank, "alpha": alpha}
    for name, value in told.items() if isinstance(told, dict) else ():
        last = name.rpartition(".")[2]
        if last == "use_rslora" and bool(value) != (settings.kind == "rslora"):
            named.refuse(
                f"{'is' if value else 'is not'} of kind rslora, and model.lora.kind is "
                f"{settings.kind}"
            )
        key = _SETTINGS.get(last)
        if key and value != own[key]:
            named.refuse(f"was trained with {key} {value}, and model.lora.{key} is {own[key]:g}")
