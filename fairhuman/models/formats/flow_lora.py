"""A LoRA of a rectified-flow transformer, from diffusers' layout to what ComfyUI and others open.

ComfyUI and ai-toolkit know diffusers' names of FLUX.1, SD 3 and Z-Image. FLUX.2 has those of its
authors' code there, where q, k and v are one layer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fairhuman.common.errors import UserError
from fairhuman.models.formats.lora_layers import PEFT_PARTS, Layer, layers_of
from fairhuman.models.formats.original_names import Original
from fairhuman.models.formats.originals import FLUX_2
from fairhuman.models.formats.weights import Source, Weights
from fairhuman.models.formats.writer import write_safetensors, written_aside

PART = "transformer."
"""What diffusers' names of a transformer's layers begin with."""
COMFY = "diffusion_model."
"""What ComfyUI's begin with."""

_Z_IMAGE = re.compile(r"(layers|noise_refiner|context_refiner)\.\d+\.")
_FLUX2 = re.compile(
    r"\.to_qkv_mlp_proj$|\.linear_(in|out)$|_stream_modulation|^time_guidance_embed"
)


def of_transformer(weights: Weights) -> bool:
    """Whether the file is a LoRA of a transformer, in anybody's names."""
    return any(name.startswith((PART, COMFY)) for name in weights.tensors)


def write_comfy(
    path: Path,
    weights: Weights,
    out: Path,
    *,
    dtype: torch.dtype | None,
    fields: Mapping[str, str],
    force: bool,
) -> None:
    """Write a LoRA of a transformer with the names that ComfyUI knows.

    Args:
        path: its file, for errors.
        weights: of that file.
        out: the file to write.
        dtype: None keeps each tensor's own.
        fields: ModelSpec's keys that the user gives.
        force: replace `out`.

    Raises:
        UserError: it cannot be converted, or `out` is there.
        OutputError: it cannot be written.
    """
    if any(name.startswith(COMFY) for name in weights.tensors):
        raise UserError(f"{path}: has ComfyUI's names already")
    tensors = to_comfy(layers_of(weights, PEFT_PARTS, path), path)
    own = {key: text for key, text in weights.metadata.items() if key.startswith("modelspec.")}
    said = own | {f"modelspec.{key}": text for key, text in fields.items()}
    said["modelspec.title"] = fields.get("title", out.stem)
    with written_aside(out, force=force) as aside:
        write_safetensors(aside, tensors, {"format": "pt", **said}, dtype)


def to_comfy(layers: Mapping[str, Layer], path: Path) -> dict[str, Source]:
    """Return a LoRA's tensors by the names that ComfyUI knows, each layer's scale in its `up`.

    So no reader has to know an alpha, which diffusers' layout has in the file's header alone.

    Args:
        layers: by diffusers' names, `transformer.…`.
        path: the file, for errors.

    Raises:
        UserError: a layer has no such name, or is DoRA's.
    """
    if other := next((name for name in layers if not name.startswith(PART)), None):
        raise UserError(f"{path}: {other}: only a transformer's layers can be converted")
    if any(layer.magnitude for layer in layers.values()):
        raise UserError(
            f"{path}: is a DoRA of a transformer, which diffusers loads; only a LoRA of one can be "
            "converted"
        )
    own = {name.removeprefix(PART): layer for name, layer in layers.items()}
    if any(map(_FLUX2.search, own)):
        return {
            f"{COMFY}{name}.{key}": part
            for name, pair in _joined(FLUX_2, own, path).items()
            for key, part in pair.items()
        }
    prefix = COMFY if all(map(_Z_IMAGE.match, own)) else PART
    return {
        f"{prefix}{name}.{key}": part
        for name, layer in own.items()
        for key, part in _pair(layer.down, _scaled(layer)).items()
    }


def _joined(
    original: Original, layers: Mapping[str, Layer], path: Path
) -> dict[str, dict[str, Source]]:
    """Return the matrices of a LoRA's layers, by the layers of the released file.

    Args:
        original: the released layout.
        layers: by diffusers' names, without `transformer.`.
        path: the file, for errors.

    Raises:
        UserError: a layer has no place there.
    """
    pairs: dict[str, dict[str, Source]] = {}
    joined: dict[str, tuple[tuple[int, ...], dict[int, Layer]]] = {}
    for name, layer in layers.items():
        place = original.layer(name)
        if place is None or place.swapped:
            raise UserError(f"{path}: {PART}{name}: is no layer of {original.name}")
        if place.part is None:
            pairs[place.name] = _pair(layer.down, _scaled(layer))
        else:
            joined.setdefault(place.name, (place.shares, {}))[1][place.part] = layer
    return pairs | {name: _join(*parts) for name, parts in joined.items()}


def _pair(down: Source, up: Source) -> dict[str, Source]:
    return {"lora_A.weight": down, "lora_B.weight": up}


def _scaled(layer: Layer) -> Source:
    """Return `up` times alpha / rank."""
    up, scale = layer.up, layer.alpha / layer.rank
    if scale == 1:
        return up
    return Source(up.shape, up.dtype, lambda: (up.read().float() * scale).to(up.dtype))


def _join(shares: Sequence[int], layers: Mapping[int, Layer]) -> dict[str, Source]:
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

    return _pair(
        Source((rank, first.down.shape[1]), first.down.dtype, down),
        Source((rows, rank), first.up.dtype, up),
    )
