"""The names of a LoRA's layers: peft's in diffusers' layout, and kohya's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fairhuman.common.errors import UserError
from fairhuman.models.formats.base import UNET
from fairhuman.models.formats.names import unet_names

# Within a transformer of the UNet, and within a text encoder, all that is linear. kohya joins a
# name's parts with underscores, which parts have too: only a list of the parts leads back.
_INNER = [
    re.compile(r"transformer_blocks_(?P<index>\d+)_(?P<rest>.+)"),
    re.compile(r"(?P<rest>proj_in|proj_out)"),
]
_BLOCK = {
    name.replace(".", "_"): name
    for name in [
        *(f"attn{n}.to_{letter}" for n in (1, 2) for letter in "qkv"),
        *(f"attn{n}.to_out.0" for n in (1, 2)),
        "ff.net.0.proj",
        "ff.net.2",
    ]
}
_TEXT = re.compile(r"(?:text_model_)?encoder_layers_(?P<index>\d+)_(?P<rest>.+)")
_TEXT_LAYER = {
    name.replace(".", "_"): name
    for name in [
        *(f"self_attn.{part}_proj" for part in ("q", "k", "v", "out")),
        "mlp.fc1",
        "mlp.fc2",
    ]
}
_TEXT_ENCODERS = {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}


class LoraNames:
    """The names of one SDXL's layers, both ways.

    kohya's names of the UNet's layers are the original checkpoint's (`input_blocks`): that is
    what kohya's own SDXL has and what it trains on, so it loads no others without a detour;
    ComfyUI maps these and diffusers', and diffusers maps these back by the UNet's config.
    """

    def __init__(self, unet: Mapping[str, Any] | None = None) -> None:
        """Take the UNet's config; None: the blocks of SDXL base."""
        self._names = unet_names(unet or UNET)
        self._blocks = {
            spelling.replace(".", "_"): new
            for new, old in self._names.original.items()
            for spelling in (new, old)
        }

    def to_kohya(self, layer: str) -> str:
        """Return kohya's name of `unet.…`, `text_encoder.…` or `text_encoder_2.…`.

        Raises:
            UserError: SDXL has no such layer.
        """
        component, _, name = layer.partition(".")
        if component == "unet":
            return "lora_unet_" + self._names.to_original(name).replace(".", "_")
        if component not in _TEXT_ENCODERS:
            raise UserError(f"{layer}: is no layer of SDXL's UNet or text encoders")
        if name != "text_projection" and not name.startswith("text_model."):
            name = f"text_model.{name}"
        return f"{_TEXT_ENCODERS[component]}_{name.replace('.', '_')}"

    def to_diffusers(self, layer: str) -> str:
        """Return the name in diffusers' layout of a layer that kohya or ComfyUI names.

        Raises:
            UserError: SDXL has no such layer.
        """
        if layer.startswith("lora_unet_"):
            name = self._unet(layer.removeprefix("lora_unet_"))
            if name:
                return f"unet.{name}"
        for component, prefix in _TEXT_ENCODERS.items():
            if layer.startswith(f"{prefix}_"):
                name = _text(layer.removeprefix(f"{prefix}_"))
                if name:
                    return f"{component}.{name}"
        raise UserError(f"{layer}: is no layer of SDXL's UNet or text encoders")

    def _unet(self, flat: str) -> str | None:
        if flat in self._blocks:
            return self._blocks[flat]
        for end in range(len(flat), 0, -1):  # the longest block's name that it starts with
            block = self._blocks.get(flat[:end])
            if block is None or flat[end : end + 1] != "_":
                continue
            for pattern in _INNER:
                inner = pattern.fullmatch(flat[end + 1 :])
                if inner and "index" not in inner.groupdict():
                    return f"{block}.{inner['rest']}"
                if inner and inner["rest"] in _BLOCK:
                    return f"{block}.transformer_blocks.{inner['index']}.{_BLOCK[inner['rest']]}"
        return None


def _text(flat: str) -> str | None:
    if flat == "text_projection":
        return flat
    layer = _TEXT.fullmatch(flat)
    if not layer or layer["rest"] not in _TEXT_LAYER:
        return None
    return f"text_model.encoder.layers.{layer['index']}.{_TEXT_LAYER[layer['rest']]}"
