"""The four models in an SDXL file: their tensors in diffusers' layout and in the original's.

Tensors are not read here: each conversion gives sources that read, join, split or reshape when
they are asked to, so that a whole checkpoint is converted with one tensor in memory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from fairhuman.common.errors import UserError
from fairhuman.models import open_clip
from fairhuman.models.formats.names import (
    TEXT_2_PREFIX,
    TEXT_PREFIX,
    UNET_PREFIX,
    VAE_PREFIX,
    Names,
)
from fairhuman.models.formats.weights import Source, changed, joined

Sources = Mapping[str, Source]

# Attention in VAEs saved by diffusers before 0.18.
_OLD_ATTENTION = {
    ".query.": ".to_q.",
    ".key.": ".to_k.",
    ".value.": ".to_v.",
    ".proj_attn.": ".to_out.0.",
}
_NEW = {**open_clip.TEXT, "text_projection": "text_projection.weight"}
_OLD = {new: old for old, new in _NEW.items()}
_OLD_PART = {new: old for old, new in open_clip.BLOCK.items()}
_QKV = re.compile(r"(text_model\.encoder\.layers\.\d+\.self_attn\.)([qkv])_proj\.(weight|bias)")
_LAYER = re.compile(r"text_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_OLD_LAYER = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)\.(weight|bias)")
_OLD_QKV = re.compile(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)")


def unet_to_original(tensors: Sources, names: Names) -> dict[str, Source]:
    """Return the UNet's tensors under `model.diffusion_model.`."""
    return {UNET_PREFIX + names.to_original(name): part for name, part in tensors.items()}


def unet_to_diffusers(tensors: Sources, names: Names) -> dict[str, Source]:
    """Return the UNet in a single file's tensors, in diffusers' names."""
    return {names.to_diffusers(k): part for k, part in _below(UNET_PREFIX, tensors).items()}


def vae_to_original(tensors: Sources, names: Names) -> dict[str, Source]:
    """Return the VAE's tensors under `first_stage_model.`: its attention is 1x1 convolutions."""
    found = {}
    for name, part in vae_in_new_names(tensors).items():
        if _is_vae_projection(name):
            part = _reshaped(part, (*part.shape[:2], 1, 1))
        found[VAE_PREFIX + names.to_original(name)] = part
    return found


def vae_to_diffusers(tensors: Sources, names: Names) -> dict[str, Source]:
    """Return the VAE in a single file's tensors, in diffusers' names and shapes."""
    found = {}
    for old, part in _below(VAE_PREFIX, tensors).items():
        if not old.startswith(("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")):
            continue  # what else its training left there: losses, an EMA
        name = names.to_diffusers(old)
        found[name] = _reshaped(part, part.shape[:2]) if _is_vae_projection(name) else part
    return found


def vae_in_new_names(tensors: Sources) -> dict[str, Source]:
    """Return the VAE's tensors in today's names, also where an old diffusers saved it."""
    found = {}
    for name, part in tensors.items():
        for old, new in _OLD_ATTENTION.items():
            name = name.replace(old, new)
        found[name] = part
    return found


def _is_vae_projection(name: str) -> bool:
    return ".attentions." in name and name.endswith(".weight") and "group_norm" not in name


def text_in_one_form(tensors: Sources) -> dict[str, Source]:
    """Return a text encoder's tensors in the names of the hub's SDXL.

    transformers 5.6 leaves `text_model.` out of CLIPTextModel; the rest of the world has it.
    """
    return {text_name(name): part for name, part in tensors.items() if "position_ids" not in name}


def text_name(name: str) -> str:
    """Return a tensor's name with `text_model.`, unless it is the projection's."""
    if name.startswith(("text_model.", "text_projection.")):
        return name
    return f"text_model.{name}"


def text_to_original(tensors: Sources) -> dict[str, Source]:
    """Return the first text encoder's tensors: the original holds transformers' own CLIP."""
    found = {TEXT_PREFIX + name: part for name, part in text_in_one_form(tensors).items()}
    length = found[f"{TEXT_PREFIX}text_model.embeddings.position_embedding.weight"].shape[0]
    # Constant, but the original has it, and a strict loader of its day insists.
    found[f"{TEXT_PREFIX}text_model.embeddings.position_ids"] = Source(
        (1, length), torch.int64, lambda: torch.arange(length)[None]
    )
    return found


def text_to_diffusers(tensors: Sources) -> dict[str, Source]:
    """Return the first text encoder in a single file's tensors."""
    return text_in_one_form(_below(TEXT_PREFIX, tensors))


def text_2_to_original(tensors: Sources) -> dict[str, Source]:
    """Return the second text encoder's tensors as OpenCLIP has them: q, k and v in one matrix."""
    found = {}
    tensors = text_in_one_form(tensors)
    for name, part in tensors.items():
        if name in _OLD:
            # OpenCLIP multiplies with its projection from the right.
            part = _transposed(part) if name == "text_projection.weight" else part
            found[TEXT_2_PREFIX + _OLD[name]] = part
            continue
        layer = _LAYER.fullmatch(name)
        if not layer:
            raise UserError(f"text_encoder_2: {name} has no place in OpenCLIP's layout")
        old = f"{TEXT_2_PREFIX}transformer.resblocks.{layer[1]}."
        qkv = _QKV.fullmatch(name)
        if qkv and qkv[2] == "q":
            parts = [tensors[f"{qkv[1]}{letter}_proj.{qkv[3]}"] for letter in "qkv"]
            found[f"{old}attn.in_proj_{qkv[3]}"] = joined(parts)
        elif not qkv:
            found[f"{old}{_OLD_PART[layer[2]]}.{layer[3]}"] = part
    return found


def text_2_to_diffusers(tensors: Sources) -> dict[str, Source]:
    """Return the second text encoder in a single file's tensors, in transformers' names."""
    found = {}
    for old, part in _below(TEXT_2_PREFIX, tensors).items():
        layer, qkv = _OLD_LAYER.fullmatch(old), _OLD_QKV.fullmatch(old)
        if old in _NEW:
            found[_NEW[old]] = _transposed(part) if old == "text_projection" else part
        elif qkv:
            for index, letter in enumerate("qkv"):
                name = f"text_model.encoder.layers.{qkv[1]}.self_attn.{letter}_proj.{qkv[2]}"
                found[name] = _third(part, index)
        elif layer and layer[2] in open_clip.BLOCK:
            name = f"text_model.encoder.layers.{layer[1]}.{open_clip.BLOCK[layer[2]]}.{layer[3]}"
            found[name] = part
        elif old != "logit_scale":  # of CLIP's training; no picture needs it
            raise UserError(f"{TEXT_2_PREFIX}{old}: is no part of SDXL's second text encoder")
    return found


def _below(prefix: str, tensors: Sources) -> dict[str, Source]:
    return {k.removeprefix(prefix): part for k, part in tensors.items() if k.startswith(prefix)}


def _reshaped(part: Source, shape: tuple[int, ...]) -> Source:
    return changed(part, shape, lambda tensor: tensor.reshape(shape))


def _transposed(part: Source) -> Source:
    return changed(part, part.shape[::-1], lambda tensor: tensor.T)


def _third(part: Source, index: int) -> Source:
    shape = (part.shape[0] // 3, *part.shape[1:])
    return changed(part, shape, lambda tensor: tensor.chunk(3)[index])
