"""A LoRA's file: found, checked against the model, and loaded into a pipeline."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fairhuman.common.error_text import first_line
from fairhuman.common.errors import UserError
from fairhuman.common.hub import Named, locate_file, split_revision
from fairhuman.common.redact import on_the_hub
from fairhuman.models.adapters import own_name
from fairhuman.models.families.unusable import UNUSABLE
from fairhuman.models.formats.kinds import LORA, file_kind, folder_kind
from fairhuman.models.formats.lora import WEIGHTS_NAME, lora_file
from fairhuman.models.formats.lora_layers import METADATA
from fairhuman.models.formats.lycoris import is_lycoris
from fairhuman.models.formats.weights import Weights, open_weights
from fairhuman.models.parts import models_of


def find_lora(named: Named) -> Path:
    """Return the file of a LoRA, before the model is loaded; of a hub's repository, fetch it.

    Args:
        named: the key, with a folder, a .safetensors file or a hub name.

    Raises:
        ConfigError: it is not there, is something else, or could hold code.
    """
    lora = Path(named.value)
    if not lora.exists() and on_the_hub(named.value) and lora.suffix != ".safetensors":
        return locate_file(named, lambda names: _of_repository(named, names))
    if lora.is_dir() and not (lora / WEIGHTS_NAME).is_file():
        named.refuse(f"is {folder_kind(lora) or f'no LoRA: it holds no {WEIGHTS_NAME}'}; {_GIVE}")
    file = lora_file(lora)
    if not file.is_file():
        named.refuse("there is no such file or folder")
    if file.suffix != ".safetensors":  # diffusers would read a pickled one all the same
        named.refuse("is no .safetensors file; others can hold code")
    return file


def _of_repository(named: Named, names: Sequence[str]) -> str:
    """Return the LoRA among the names of a repository's files."""
    files = [name for name in names if name.endswith(".safetensors")]
    if WEIGHTS_NAME in files:
        return WEIGHTS_NAME
    if "model_index.json" in names or not files:
        named.refuse(f"holds no {WEIGHTS_NAME} on the hub; {_GIVE}")
    if len(files) > 1:
        download = " --revision ".join(filter(None, split_revision(named.value)))
        named.refuse(
            f"holds several .safetensors files on the hub ({', '.join(files[:5])}): download the "
            f"one, by `hf download {download} FILE`, and give its path"
        )
    return files[0]


def check_lora(named: Named, lora: Path, unet: Mapping[str, Any]) -> None:
    """Check that a file is a LoRA for such a UNet, before the model is loaded.

    Args:
        named: the key, for messages.
        lora: the file.
        unet: its config; empty where it is not known.

    Raises:
        ConfigError: it is not.
    """
    with open_weights(lora) as weights:
        kind = file_kind(weights.tensors)
        if kind is None or kind.name != LORA:
            named.refuse(f"is {kind or 'no LoRA'}; {_GIVE}")
        _check_magnitudes(named, weights.tensors)
        widths = {
            source.shape[1]
            for name, source in weights.tensors.items()
            if "attn2" in name
            and any(part in name for part in ("to_k", "to_v"))
            and any(part in name for part in ("lora_A", "lora.down", "lora_down"))
            and len(source.shape) == 2
        }
    width = unet.get("cross_attention_dim")
    other = widths - {width}
    if width and other:
        of = {768: " (SD 1.x)", 1024: " (SD 2.x)", 2048: " (SDXL)"}.get(min(other), "")
        named.refuse(
            f"does not fit the model: it is of a UNet that reads captions of width {min(other)}"
            f"{of}, and the model's reads {width}"
        )


def _check_magnitudes(named: Named, names: Iterable[str]) -> None:
    """Refuse a DoRA whose magnitudes diffusers leaves out, with at most a warning."""
    for name in names:
        if name.endswith(".dora_scale"):
            named.refuse(
                "is a DoRA with LyCORIS' keys, whose magnitudes diffusers does not load; convert "
                "it first (fairhuman export --to diffusers)"
            )
        if name.startswith("text_encoder") and "lora_magnitude_vector" in name:
            named.refuse("is a DoRA of the text encoders, whose magnitudes diffusers does not load")


_NAME = "lora"
_GIVE = "give a LoRA's folder, its .safetensors file, or a hub name"


def load_lora(pipeline: Any, file: Path, scale: float) -> None:
    """Add a LoRA to a pipeline.

    Raises:
        UserError: it does not fit.
    """
    try:
        with open_weights(file) as weights:
            lycoris = any(map(is_lycoris, weights.tensors))
            if lycoris:
                _load_lycoris(pipeline, weights)
        if not lycoris:
            pipeline.load_lora_weights(
                file.parent, weight_name=file.name, adapter_name=_NAME, use_safetensors=True
            )
        pipeline.set_adapters(_NAME, scale)
    except UNUSABLE as error:
        raise UserError(f"--lora {file}: does not fit the model: {first_line(error)}") from error


def _load_lycoris(pipeline: Any, weights: Weights) -> None:
    """Add a LoKr or LoHa, which diffusers' pipelines do not load, as `LoRA.write` has written it.

    Raises:
        ValueError: it has a layer that the model lacks, or is of LyCORIS' own form.
    """
    from peft import LoHaConfig, LoKrConfig, set_peft_model_state_dict

    if METADATA not in weights.metadata:
        raise ValueError(f"its header has no {METADATA}: a file for ComfyUI is not read back")
    settings = json.loads(weights.metadata[METADATA])
    for component, model in models_of(pipeline).items():
        start = f"{component}."
        parts = {
            own_name(model, name.removeprefix(start)): source.read()
            for name, source in weights.tensors.items()
            if name.startswith(start)
        }
        if not parts:
            continue
        kind = LoKrConfig if any(".lokr_" in name for name in parts) else LoHaConfig
        own = {k.removeprefix(start): v for k, v in settings.items() if k.startswith(start)}
        adapted: Any = model
        adapted.add_adapter(kind(**own), _NAME)
        loaded: Any = set_peft_model_state_dict(model, parts, _NAME)
        if loaded.unexpected_keys:
            raise ValueError(f"{component} has no {loaded.unexpected_keys[0]}")
