"""SDXL at its full size on the device, with weights that nobody has written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fairhuman.config import Model
from fairhuman.models.families.sdxl.model import SDXL
from stub.injected import put


def load_empty(captions: Sequence[str]) -> None:
    """Have `SDXL.load` return one, whose tokenizers know these captions."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    from fairhuman.demo.tiny import _tokenizer
    from fairhuman.models.formats.pipeline_folder import PipelineFolder

    def load(settings: Model, dtype: torch.dtype, device: torch.device) -> SDXL:
        layout = PipelineFolder.base()
        parts: dict[str, Any] = {
            name: layout.empty(name).to(dtype).to_empty(device=device)
            for name in ("unet", "text_encoder", "text_encoder_2")
        }
        pipeline = StableDiffusionXLPipeline(
            **parts,
            vae=layout.empty("vae").to_empty(device=device),
            tokenizer=_tokenizer(captions, pad="<|endoftext|>"),
            tokenizer_2=_tokenizer(captions, pad="!"),
            scheduler=EulerDiscreteScheduler.from_config(layout.scheduler),
        )
        pipeline.set_progress_bar_config(disable=True)
        return SDXL.of(pipeline, settings)

    put(SDXL, "load", staticmethod(load))
