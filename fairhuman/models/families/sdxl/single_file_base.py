"""An SDXL in one .safetensors file, as ComfyUI and kohya have it, as a pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairhuman.models.formats.single_file import opened_parts, prediction


def load_single_file(file: Path, folder: Path, dtype: torch.dtype) -> Any:
    """Return a StableDiffusionXLPipeline with the file's weights.

    diffusers' own `from_single_file` tells components by the shapes of their weights, and takes
    those of some models for others; here the config's names are the measure.

    Args:
        file: an SDXL with the original names; only safetensors.
        folder: an SDXL in diffusers' layout, whose configs and tokenizers are taken.
        dtype: of the UNet and the text encoders; the VAE gets float32.

    Raises:
        UserError: the file is damaged, pickled, or not an SDXL of that config.
    """
    from diffusers import StableDiffusionXLPipeline

    with opened_parts(file, folder) as (weights, parts):
        models = {}
        for name, tensors in parts.items():
            kept = torch.float32 if name == "vae" else dtype
            state = {key: source.read().to(kept, copy=True) for key, source in tensors.items()}
            models[name] = _component(name, folder / name, state, dtype)
        said = prediction(weights)
    pipeline: Any = StableDiffusionXLPipeline.from_pretrained(
        folder, torch_dtype=dtype, use_safetensors=True, **models
    )
    pipeline.scheduler.register_to_config(**said)
    return pipeline


def _component(name: str, folder: Path, state: dict[str, Tensor], dtype: torch.dtype) -> Any:
    """Return a component of a pipeline with these weights, of which no copy is made."""
    from accelerate import init_empty_weights
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    if name.startswith("text"):
        encoder: Any = CLIPTextModel if name == "text_encoder" else CLIPTextModelWithProjection
        # Knows the names of before transformers 5, which are those of the files.
        return encoder.from_pretrained(
            None, config=CLIPTextConfig.from_pretrained(folder), state_dict=state, dtype=dtype
        )
    kind: Any = UNet2DConditionModel if name == "unet" else AutoencoderKL
    with init_empty_weights(include_buffers=False):
        model = kind.from_config(kind.load_config(folder))
    model.load_state_dict(state, assign=True)
    return model.eval()
