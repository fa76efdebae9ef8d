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
_BLOCK = re.compile(r"(single_)?transformer_blocks\.(\d+)\.(.+)")
_SINGLE = {"attn.to_qkv_mlp_proj": "linear1", "attn.to_out": "linear2"}
_DOUBLE = {
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "ff.linear_in": "img_mlp.0",
    "ff.linear_out": "img_mlp.2",
    "ff_context.linear_in": "txt_mlp.0",
    "ff_context.linear_out": "txt_mlp.2",
}
_JOINED = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}
_OUTSIDE = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "proj_out": "final_layer.linear",
    "single_stream_modulation.linear": "single_stream_modulation.lin",
    "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
}


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
        return _flux2(own, path)
    prefix = COMFY if all(map(_Z_IMAGE.match, own)) else PART
    return {
        f"{prefix}{name}.{key}": part
        for name, layer in own.items()
        for key, part in _pair(layer.down, _scaled(layer)).items()
    }


def _flux2(layers: Mapping[str, Layer], path: Path) -> dict[str, Source]:
    tensors: dict[str, Source] = {}
    joined: dict[str, dict[str, Layer]] = {}
    for name, layer in layers.items():
        block = _BLOCK.fullmatch(name)
        if not block:
            where = _OUTSIDE.get(name)
        elif block[1]:
            where = _in_block(f"single_blocks.{block[2]}", _SINGLE.get(block[3]))
        else:
            whole = next((key for key, parts in _JOINED.items() if block[3] in parts), None)
            if whole:
                joined.setdefault(f"double_blocks.{block[2]}.{whole}", {})[block[3]] = layer
                continue
            where = _in_block(f"double_blocks.{block[2]}", _DOUBLE.get(block[3]))
        if where is None:
            raise UserError(f"{path}: {PART}{name}: is no layer of FLUX.2")
        tensors |= _named(where, _pair(layer.down, _scaled(layer)))
    for where, found in joined.items():
        names = _JOINED[where.split(".", 2)[2]]
        tensors |= _named(where, _join([found.get(name) for name in names]))
    return tensors


def _in_block(block: str, name: str | None) -> str | None:
    return name and f"{block}.{name}"


def _named(where: str, parts: Mapping[str, Source]) -> dict[str, Source]:
    return {f"{COMFY}{where}.{key}": part for key, part in parts.items()}


def _pair(down: Source, up: Source) -> dict[str, Source]:
    return {"lora_A.weight": down, "lora_B.weight": up}


def _scaled(layer: Layer) -> Source:
    """Return `up` times alpha / rank."""
    up, scale = layer.up, layer.alpha / layer.rank
    if scale == 1:
        return up
    return Source(up.shape, up.dtype, lambda: (up.read().float() * scale).to(up.dtype))


def _join(layers: Sequence[Layer | None]) -> dict[str, Source]:
    """Return layers of the same input as one, whose output is theirs one after another.

    Args:
        layers: of the same number of outputs each; None for one that is not adapted.
    """
    there = [layer for layer in layers if layer]
    rows, first = there[0].up.shape[0], there[0]
    rank = sum(layer.rank for layer in there)

    def down() -> Tensor:
        return torch.cat([layer.down.read() for layer in there])

    def up() -> Tensor:
        whole = torch.zeros(len(layers) * rows, rank, dtype=first.up.dtype)
        column = 0
        for place, layer in enumerate(layers):
            if layer:
                block = whole[place * rows : (place + 1) * rows, column : column + layer.rank]
                block.copy_(_scaled(layer).read())
                column += layer.rank
        return whole

    return _pair(
        Source((rank, first.down.shape[1]), first.down.dtype, down),
        Source((len(layers) * rows, rank), first.up.dtype, up),
    )
