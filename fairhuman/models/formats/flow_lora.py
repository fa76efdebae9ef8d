"""A LoRA of a rectified-flow transformer, from diffusers' layout to what ComfyUI and others open.

ComfyUI and ai-toolkit know diffusers' names of FLUX.1, SD 3 and Z-Image. FLUX.2 has those of its
authors' code there, where q, k and v are one layer. kohya's keys are the authors' names too.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fairhuman.common.errors import UserError
from fairhuman.models.formats.lora_layers import PEFT_PARTS, Layer, layers_of
from fairhuman.models.formats.lycoris import scalar
from fairhuman.models.formats.original_names import Original
from fairhuman.models.formats.originals import FLUX_1, FLUX_2, ORIGINALS, Z_IMAGE
from fairhuman.models.formats.weights import Source, Weights
from fairhuman.models.formats.writer import write_safetensors, written_aside

PART = "transformer."
"""What diffusers' names of a transformer's layers begin with."""
COMFY = "diffusion_model."
"""What ComfyUI's begin with."""

_KOHYA = "lora_unet_"
_KOHYA_BLOCKS = (f"{_KOHYA}double_blocks_", f"{_KOHYA}single_blocks_")
_Z_IMAGE = re.compile(r"(layers|noise_refiner|context_refiner)\.\d+\.")
_FLUX_2 = re.compile(
    r"\.to_qkv_mlp_proj$|\.linear_(in|out)$|_stream_modulation|^time_guidance_embed"
)


class Pair(NamedTuple):
    """The matrices of a layer whose scale is 1."""

    down: Source
    up: Source


def of_transformer(weights: Weights) -> bool:
    """Whether the file is a LoRA of a transformer, in anybody's names."""
    return any(name.startswith((PART, COMFY, *_KOHYA_BLOCKS)) for name in weights.tensors)


def write_flow_lora(
    path: Path,
    weights: Weights,
    out: Path,
    *,
    kohya: bool,
    dtype: torch.dtype | None,
    fields: Mapping[str, str],
    force: bool,
) -> None:
    """Write a LoRA of a transformer with the names that other tools know.

    Args:
        path: its file, for errors.
        weights: of that file.
        out: the file to write.
        kohya: with kohya's keys; else with those that ComfyUI and ai-toolkit know.
        dtype: None keeps each tensor's own.
        fields: ModelSpec's keys that the user gives.
        force: replace `out`.

    Raises:
        UserError: it cannot be converted, or `out` is there.
        OutputError: it cannot be written.
    """
    for whose, starts in (("ComfyUI's names", (COMFY,)), ("kohya's keys", _KOHYA_BLOCKS)):
        if any(name.startswith(starts) for name in weights.tensors):
            raise UserError(f"{path}: has {whose} already; give the LoRA that it was made from")
    layers = _own_layers(layers_of(weights, PEFT_PARTS, path), path)
    original = _original(layers, weights.metadata)
    tensors = (_kohya if kohya else _comfy)(original, layers, path)
    own = {key: text for key, text in weights.metadata.items() if key.startswith("modelspec.")}
    said = own | {f"modelspec.{key}": text for key, text in fields.items()}
    said["modelspec.title"] = fields.get("title", out.stem)
    with written_aside(out, force=force) as aside:
        write_safetensors(aside, tensors, {"format": "pt", **said}, dtype)


def _own_layers(layers: Mapping[str, Layer], path: Path) -> dict[str, Layer]:
    """Return a transformer's layers by their names in it.

    Raises:
        UserError: one is not a transformer's, or is DoRA's.
    """
    if other := next((name for name in layers if not name.startswith(PART)), None):
        raise UserError(f"{path}: {other}: only a transformer's layers can be converted")
    if any(layer.magnitude for layer in layers.values()):
        raise UserError(
            f"{path}: is a DoRA of a transformer, which diffusers loads; only a LoRA of one can be "
            "converted"
        )
    return {name.removeprefix(PART): layer for name, layer in layers.items()}


def _original(layers: Collection[str], metadata: Mapping[str, str]) -> Original | None:
    """Return the layout that a LoRA's base was released in; None if nothing in the file tells.

    Args:
        layers: names of the adapted layers.
        metadata: the file's header.
    """
    said = metadata.get("modelspec.architecture", "").removesuffix("/lora")
    for original in ORIGINALS.values():
        if said and said in (original.architecture, original.guided):
            return original
    if any(map(_FLUX_2.search, layers)):
        return FLUX_2
    if any(name.startswith("single_transformer_blocks.") for name in layers):
        return FLUX_1
    return Z_IMAGE if all(map(_Z_IMAGE.match, layers)) else None


def _comfy(original: Original | None, layers: Mapping[str, Layer], path: Path) -> dict[str, Source]:
    """Return a LoRA's tensors by the names that ComfyUI knows, each layer's scale in its `up`.

    So no reader has to know an alpha, which diffusers' layout has in the file's header alone.
    """
    if original is FLUX_2:
        pairs = _joined(FLUX_2, layers, path)
    else:
        pairs = {name: Pair(layer.down, _scaled(layer)) for name, layer in layers.items()}
    prefix = COMFY if original in (FLUX_2, Z_IMAGE) else PART
    tensors: dict[str, Source] = {}
    for name, pair in pairs.items():
        tensors[f"{prefix}{name}.lora_A.weight"] = pair.down
        tensors[f"{prefix}{name}.lora_B.weight"] = pair.up
    return tensors


def _kohya(original: Original | None, layers: Mapping[str, Layer], path: Path) -> dict[str, Source]:
    """Return a LoRA's tensors by kohya's keys, with an alpha that makes the scale 1."""
    if original not in (FLUX_1, FLUX_2):
        what = f"this one is of {original.name}" if original else "nothing tells that this one is"
        raise UserError(
            f"{path}: --to kohya-lora is for LoRAs of SDXL, FLUX.1 and FLUX.2, and {what}; use "
            "--to comfy-lora"
        )
    tensors: dict[str, Source] = {}
    for name, pair in _joined(original, layers, path).items():
        key = f"{_KOHYA}{name.replace('.', '_')}"
        tensors[f"{key}.lora_down.weight"] = pair.down
        tensors[f"{key}.lora_up.weight"] = pair.up
        tensors[f"{key}.alpha"] = scalar(float(pair.down.shape[0]))
    return tensors


def _joined(original: Original, layers: Mapping[str, Layer], path: Path) -> dict[str, Pair]:
    """Return the matrices of a LoRA's layers, by the layers of the released file.

    Args:
        original: the released layout.
        layers: by diffusers' names, without `transformer.`.
        path: the file, for errors.

    Raises:
        UserError: a layer has no place there, or does not fit those that it is joined with.
    """
    pairs: dict[str, Pair] = {}
    joined: dict[str, tuple[tuple[int, ...], dict[int, Layer]]] = {}
    for name, layer in layers.items():
        place = original.layer(name)
        if place is None or place.swapped:
            raise UserError(
                f"{path}: {PART}{name}: is no layer of {original.name} that can be converted"
            )
        if place.part is None:
            pairs[place.name] = Pair(layer.down, _scaled(layer))
        else:
            joined.setdefault(place.name, (place.shares, {}))[1][place.part] = layer
    for name, (shares, parts) in joined.items():
        units = {layer.up.shape[0] / shares[part] for part, layer in parts.items()}
        if len(units) > 1 or len({layer.down.shape[1] for layer in parts.values()}) > 1:
            raise UserError(f"{path}: its layers that are {name} in {original.name} do not fit")
        pairs[name] = _join(shares, parts)
    return pairs


def _scaled(layer: Layer) -> Source:
    """Return `up` times alpha / rank."""
    up, scale = layer.up, layer.alpha / layer.rank
    if scale == 1:
        return up
    return Source(up.shape, up.dtype, lambda: (up.read().float() * scale).to(up.dtype))


def _join(shares: Sequence[int], layers: Mapping[int, Layer]) -> Pair:
    """Return layers of the same input as one, whose output is theirs one after another.

    Args:
        shares: of the joined outputs, those of each part.
        layers: by the number of the part; the others are not adapted.
    """
    there = sorted(layers.items())
    part, first = there[0]
    unit = first.up.shape[0] // shares[part]  # outputs of a share
    rows, rank = sum(shares) * unit, sum(layer.rank for _, layer in there)

    def down() -> Tensor:
        return torch.cat([layer.down.read() for _, layer in there])

    def up() -> Tensor:
        whole = torch.zeros(rows, rank, dtype=first.up.dtype)
        column = 0
        for index, layer in there:
            start = sum(shares[:index]) * unit
            block = whole[start : start + shares[index] * unit, column : column + layer.rank]
            block.copy_(_scaled(layer).read())
            column += layer.rank
        return whole

    return Pair(
        Source((rank, first.down.shape[1]), first.down.dtype, down),
        Source((rows, rank), first.up.dtype, up),
    )
