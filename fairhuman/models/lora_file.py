"""A LoRA's file: found, checked against the model, and loaded into a pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairhuman.common.error_text import first_line
from fairhuman.common.errors import UserError
from fairhuman.models.families.sdxl.model import SDXL, UNUSABLE
from fairhuman.models.formats.kinds import LORA, file_kind, folder_kind
from fairhuman.models.formats.lora import WEIGHTS_NAME, lora_file
from fairhuman.models.formats.weights import open_weights


def find_lora(lora: Path) -> Path:
    """Return the file of a LoRA, before the model is loaded.

    Raises:
        UserError: it is not there, is something else, or could hold code.
    """
    if lora.is_dir() and not (lora / WEIGHTS_NAME).is_file() and (found := folder_kind(lora)):
        raise UserError(f"--lora {lora}: is {found}; give a LoRA's folder or file")
    file = lora_file(lora)
    if not file.is_file():
        raise UserError(f"--lora {lora}: there is no such file or folder")
    if file.suffix != ".safetensors":  # diffusers would read a pickled one all the same
        raise UserError(f"--lora {lora}: is no .safetensors file; others can hold code")
    return file


def check_lora(lora: Path, unet: Mapping[str, Any]) -> None:
    """Check that a file is a LoRA for such a UNet, before the model is loaded.

    Args:
        lora: the file.
        unet: its config; empty where it is not known.

    Raises:
        UserError: it is not.
    """
    with open_weights(lora) as weights:
        kind = file_kind(weights.tensors)
        if kind is None or kind.name != LORA:
            raise UserError(f"--lora {lora}: is {kind or 'no LoRA'}; give a LoRA's folder or file")
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
        raise UserError(
            f"--lora {lora}: does not fit the model: it is of a UNet that reads captions of width "
            f"{min(other)}{of}, and --model's reads {width}"
        )


def load_lora(sdxl: SDXL, file: Path, scale: float) -> None:
    """Add a LoRA to the model's pipeline.

    Raises:
        UserError: it does not fit.
    """
    try:
        sdxl.pipeline.load_lora_weights(
            file.parent, weight_name=file.name, adapter_name="lora", use_safetensors=True
        )
        sdxl.pipeline.set_adapters("lora", scale)
    except UNUSABLE as error:
        raise UserError(f"--lora {file}: does not fit the model: {first_line(error)}") from error
