"""A LoRA or DoRA of SDXL from diffusers' layout to kohya's, which ComfyUI loads too, and back.

LoKr and LoHa go one way; see `lycoris`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from fairhuman.common.errors import UserError
from fairhuman.common.files import replacing
from fairhuman.models.formats.lora_layers import (
    KOHYA_PARTS,
    METADATA,
    PEFT_PARTS,
    Layer,
    adapter_settings,
    layers_of,
)
from fairhuman.models.formats.lora_names import LoraNames
from fairhuman.models.formats.lycoris import is_lycoris, scalar, to_lycoris
from fairhuman.models.formats.modelspec import SDXL, modelspec
from fairhuman.models.formats.weights import Source, Weights, open_weights
from fairhuman.models.formats.writer import write_safetensors, written_aside

WEIGHTS_NAME = "pytorch_lora_weights.safetensors"
"""The file's name in a folder that diffusers writes."""


def to_kohya(
    lora: Path,
    out: Path,
    *,
    unet: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    fields: Mapping[str, str] | None = None,
    allow_pickle: bool = False,
    force: bool = False,
) -> None:
    """Write a LoRA in diffusers' layout with kohya's keys, DoRA, LoKr and LoHa with LyCORIS'.

    Args:
        lora: the file, or the folder that `save_lora_weights` wrote.
        out: the file to write.
        unet: the config of the UNet that it adapts; None: SDXL base's.
        dtype: None keeps each tensor's own.
        fields: ModelSpec's keys that the user gives.
        allow_pickle: read `lora` also if torch.save wrote it.
        force: replace `out`.

    Raises:
        UserError: it is no LoRA of such a model, or `out` is there.
        OutputError: it cannot be written.
    """
    path = lora_file(lora)
    names = LoraNames(unet)
    with open_weights(path, allow_pickle=allow_pickle) as weights:
        if is_kohya(weights):
            raise UserError(f"{path}: has kohya's keys already; ComfyUI and kohya open it as it is")
        if any(map(is_lycoris, weights.tensors)):
            settings = adapter_settings(weights, path)
            tensors, ranks, alphas = to_lycoris(weights.tensors, settings, names, path)
            module = "lycoris.kohya"
        else:
            layers = layers_of(weights, PEFT_PARTS, path)
            tensors = {key: part for name in layers for key, part in _kohya(names, name, layers)}
            ranks = [layer.rank for layer in layers.values()]
            alphas = [layer.alpha for layer in layers.values()]
            module = "lycoris.kohya" if _is_dora(layers, _peft_shape, path) else "networks.lora"
        metadata = {
            "format": "pt",
            **modelspec(
                out.stem,
                SDXL,
                adapter="lora",
                v_prediction=None,
                fields={**trained_at(weights), **(fields or {})},
            ),
            "ss_base_model_version": "sdxl_base_v1-0",
            "ss_network_module": module,
            "ss_network_dim": _common(ranks),
            "ss_network_alpha": _common(alphas),
            "ss_output_name": out.stem,
        }
        with written_aside(out, force=force) as aside:
            write_safetensors(aside, tensors, metadata, dtype)


def from_kohya(
    lora: Path,
    out: Path,
    *,
    unet: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    fields: Mapping[str, str] | None = None,
    allow_pickle: bool = False,
    force: bool = False,
) -> None:
    """Write a LoRA with kohya's keys as the folder that diffusers' `load_lora_weights` takes.

    The arguments and errors are those of `to_kohya`.
    """
    path = lora_file(lora)
    names = LoraNames(unet)
    with open_weights(path, allow_pickle=allow_pickle) as weights:
        kohya = layers_of(weights, KOHYA_PARTS, path)
        layers = {names.to_diffusers(name): layer for name, layer in kohya.items()}
        dora = _is_dora(layers, _lycoris_shape, path)
        if dora and (text := next((name for name in layers if name.startswith("text")), None)):
            raise UserError(
                f"{path}: has DoRA's magnitudes of {text}, and diffusers loads those of the UNet "
                "alone"
            )
        tensors = {}
        for name, layer in layers.items():
            tensors[f"{name}.lora_A.weight"] = layer.down
            tensors[f"{name}.lora_B.weight"] = layer.up
            if layer.magnitude:
                tensors[f"{name}.lora_magnitude_vector"] = _shaped(
                    layer.magnitude, _peft_shape(layer)
                )
        said = {
            key: value for key, value in weights.metadata.items() if key.startswith("modelspec.")
        }
        own = modelspec(
            said.get("modelspec.title", out.name),
            SDXL,
            adapter="lora",
            implementation="diffusers",
            v_prediction=None,
            fields=trained_at(weights),
        )
        metadata = {
            "format": "pt",
            **said,
            **own,
            **{f"modelspec.{key}": value for key, value in (fields or {}).items()},
            METADATA: json.dumps(_peft_config(layers, dora), sort_keys=True),
        }
        with written_aside(out / WEIGHTS_NAME, force=force) as aside:
            write_safetensors(aside, tensors, metadata, dtype)


def describe(file: Path, title: str, architecture: str, resolution: int) -> None:
    """Write into the header of a LoRA that diffusers has written what it is.

    Args:
        file: replaced; its tensors and the rest of its header stay.
        title: what a browser of models shows.
        architecture: the base model's, in ModelSpec's words.
        resolution: side in pixels of the images that it was trained on.
    """
    own = modelspec(
        title,
        architecture,
        adapter="lora",
        implementation="diffusers",
        resolution=resolution,
        v_prediction=None,
    )
    with open_weights(file) as weights, replacing(file) as aside:
        write_safetensors(aside, weights.tensors, {**weights.metadata, **own})


def trained_at(weights: Weights) -> dict[str, str]:
    """Return the resolution that a LoRA's header tells, as one of ModelSpec's fields."""
    found = weights.metadata.get("modelspec.resolution")
    return {"resolution": found} if found else {}


def lora_file(path: Path) -> Path:
    """Return the file of a LoRA that is given as a file or as diffusers' folder.

    Raises:
        UserError: the folder holds none.
    """
    if not path.is_dir():
        return path
    if (path / WEIGHTS_NAME).is_file():
        return path / WEIGHTS_NAME
    raise UserError(f"{path}: holds no {WEIGHTS_NAME}; give a LoRA's folder or file")


def is_kohya(weights: Weights) -> bool:
    """Whether the keys are those of a LoRA in kohya's form."""
    return any(name.startswith(("lora_unet_", "lora_te")) for name in weights.tensors)


def _kohya(
    names: LoraNames, name: str, layers: Mapping[str, Layer]
) -> Iterator[tuple[str, Source]]:
    """Yield a layer's tensors by kohya's keys."""
    kohya, layer = names.to_kohya(name), layers[name]
    yield f"{kohya}.lora_down.weight", layer.down
    yield f"{kohya}.lora_up.weight", layer.up
    yield f"{kohya}.alpha", scalar(layer.alpha)
    if layer.magnitude:
        yield f"{kohya}.dora_scale", _shaped(layer.magnitude, _lycoris_shape(layer))


def _is_dora(
    layers: Mapping[str, Layer], shape_of: Callable[[Layer], tuple[int, ...]], path: Path
) -> bool:
    """Return whether the layers have DoRA's magnitudes, one for each row of W as in the paper.

    Raises:
        UserError: some have, which peft's settings cannot say, or they are of another shape.
    """
    magnitudes = {n: layer.magnitude for n, layer in layers.items() if layer.magnitude}
    if 0 < len(magnitudes) < len(layers):
        raise UserError(
            f"{path}: {len(magnitudes)} of its {len(layers)} layers are DoRA's, not all"
        )
    for name, magnitude in magnitudes.items():
        expected = shape_of(layers[name])
        if magnitude.shape != expected:
            raise UserError(
                f"{path}: {name}: its DoRA has magnitudes of shape {list(magnitude.shape)}, and "
                f"one for each row would be {list(expected)}; LyCORIS must have trained it with "
                "wd_on_output=True"
            )
    return bool(magnitudes)


def _lycoris_shape(layer: Layer) -> tuple[int, ...]:
    return (layer.up.shape[0], *[1] * (len(layer.down.shape) - 1))


def _peft_shape(layer: Layer) -> tuple[int, ...]:
    rows = layer.up.shape[0]
    return (1, rows, 1, 1) if len(layer.down.shape) == 4 else (rows,)


def _shaped(part: Source, shape: tuple[int, ...]) -> Source:
    return Source(shape, part.dtype, lambda: part.read().reshape(shape))


def _peft_config(layers: Mapping[str, Layer], dora: bool) -> dict[str, Any]:
    """Return the adapters' settings as diffusers packs them: `component.field`."""
    config: dict[str, Any] = {}
    for component in ("unet", "text_encoder", "text_encoder_2"):
        # text_model. is absent from the modules of transformers 5.6; peft compares names' ends.
        own = {
            name.removeprefix(f"{component}.").removeprefix("text_model."): layer
            for name, layer in layers.items()
            if name.startswith(f"{component}.")
        }
        if not own:
            continue
        first = next(iter(own.values()))
        config |= {
            f"{component}.r": first.rank,
            f"{component}.lora_alpha": first.alpha,
            f"{component}.use_dora": dora,
            f"{component}.target_modules": sorted(own),
            f"{component}.rank_pattern": {
                name: layer.rank for name, layer in own.items() if layer.rank != first.rank
            },
            f"{component}.alpha_pattern": {
                name: layer.alpha for name, layer in own.items() if layer.alpha != first.alpha
            },
        }
    return config


def _common(values: list[int] | list[float]) -> str:
    """Return what kohya writes: one number, or Dynamic where layers differ."""
    return f"{values[0]:g}" if len(set(values)) == 1 else "Dynamic"
