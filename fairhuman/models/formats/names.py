"""The names of SDXL's parts: in diffusers' layout, and in the original checkpoint.

Both ways are derived from the configs of the UNet and the VAE, so that any model of SDXL's
structure has its names, whatever its depth and width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fairhuman.common.errors import UserError

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
TEXT_PREFIX = "conditioner.embedders.0.transformer."
TEXT_2_PREFIX = "conditioner.embedders.1.model."

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_RESNET = {
    "norm1": "norm1",
    "conv1": "conv1",
    "norm2": "norm2",
    "conv2": "conv2",
    "conv_shortcut": "nin_shortcut",
}
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}


@dataclass(frozen=True)
class Names:
    """Module names of one model, diffusers' to original ones; what is below keeps its name."""

    original: Mapping[str, str]

    @cached_property
    def diffusers(self) -> dict[str, str]:
        """The way back."""
        return {new: old for old, new in self.original.items()}

    def to_original(self, name: str) -> str:
        """Return the original name of a tensor or a module.

        Raises:
            UserError: there is no such part in an SDXL of this config.
        """
        return _renamed(name, self.original)

    def to_diffusers(self, name: str) -> str:
        """Return diffusers' name of a tensor or a module.

        Raises:
            UserError: there is no such part in an SDXL of this config.
        """
        return _renamed(name, self.diffusers)


def _renamed(name: str, table: Mapping[str, str]) -> str:
    parts = name.split(".")
    for length in range(len(parts), 0, -1):  # the longest prefix is the most particular one
        new = table.get(".".join(parts[:length]))
        if new is not None:
            return ".".join([new, *parts[length:]])
    raise UserError(f"{name}: an SDXL of this config has no such part; is it another model's?")


def unet_names(config: Mapping[str, Any]) -> Names:
    """Return the names of a UNet2DConditionModel's parts, from its config."""
    down, up = config["down_block_types"], config["up_block_types"]
    layers = config["layers_per_block"]
    layers = [layers] * len(down) if isinstance(layers, int) else list(layers)
    names = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        "mid_block.attentions.0": "middle_block.1",
        **_resnet("mid_block.resnets.0", "middle_block.0", _RESNET),
        **_resnet("mid_block.resnets.1", "middle_block.2", _RESNET),
    }
    index = 1
    for block, kind in enumerate(down):
        for layer in range(layers[block]):
            names |= _resnet(
                f"down_blocks.{block}.resnets.{layer}", f"input_blocks.{index}.0", _RESNET
            )
            if kind.startswith("CrossAttn"):
                names[f"down_blocks.{block}.attentions.{layer}"] = f"input_blocks.{index}.1"
            index += 1
        if block < len(down) - 1:
            names[f"down_blocks.{block}.downsamplers.0.conv"] = f"input_blocks.{index}.0.op"
            index += 1
    index = 0
    for block, kind in enumerate(up):
        attends = kind.startswith("CrossAttn")
        last = layers[len(up) - 1 - block]
        for layer in range(last + 1):
            names |= _resnet(
                f"up_blocks.{block}.resnets.{layer}", f"output_blocks.{index}.0", _RESNET
            )
            if attends:
                names[f"up_blocks.{block}.attentions.{layer}"] = f"output_blocks.{index}.1"
            if layer == last and block < len(up) - 1:
                after = 2 if attends else 1
                names[f"up_blocks.{block}.upsamplers.0.conv"] = (
                    f"output_blocks.{index}.{after}.conv"
                )
            index += 1
    return Names(names)


def vae_names(config: Mapping[str, Any]) -> Names:
    """Return the names of an AutoencoderKL's parts, from its config."""
    names = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    layers = config["layers_per_block"]
    down, up = len(config["down_block_types"]), len(config["up_block_types"])
    for side in ("encoder", "decoder"):
        names[f"{side}.conv_in"] = f"{side}.conv_in"
        names[f"{side}.conv_out"] = f"{side}.conv_out"
        names[f"{side}.conv_norm_out"] = f"{side}.norm_out"
        for layer in (0, 1):
            names |= _resnet(
                f"{side}.mid_block.resnets.{layer}", f"{side}.mid.block_{layer + 1}", _VAE_RESNET
            )
        for new, old in _VAE_ATTENTION.items():
            names[f"{side}.mid_block.attentions.0.{new}"] = f"{side}.mid.attn_1.{old}"
    for block in range(down):
        for layer in range(layers):
            names |= _resnet(
                f"encoder.down_blocks.{block}.resnets.{layer}",
                f"encoder.down.{block}.block.{layer}",
                _VAE_RESNET,
            )
        if block < down - 1:
            names[f"encoder.down_blocks.{block}.downsamplers.0.conv"] = (
                f"encoder.down.{block}.downsample.conv"
            )
    for block in range(up):
        level = up - 1 - block  # the original counts its decoder's levels from the finest
        for layer in range(layers + 1):
            names |= _resnet(
                f"decoder.up_blocks.{block}.resnets.{layer}",
                f"decoder.up.{level}.block.{layer}",
                _VAE_RESNET,
            )
        if block < up - 1:
            names[f"decoder.up_blocks.{block}.upsamplers.0.conv"] = (
                f"decoder.up.{level}.upsample.conv"
            )
    return Names(names)


def _resnet(new: str, old: str, parts: Mapping[str, str]) -> dict[str, str]:
    return {f"{new}.{part}": f"{old}.{name}" for part, name in parts.items()}
