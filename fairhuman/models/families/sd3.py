"""Stable Diffusion 3.5 (Esser et al. 2024, arXiv 2403.03206), medium and large, and 3."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fairhuman.models.encoded import Prompt
from fairhuman.models.families.flow import FlowTransformer
from fairhuman.models.formats.originals import SD_3

_CLIP_TOKENS = 77


class SD3(FlowTransformer):
    """SD 3.5: two CLIPs and T5 read the captions; the grid is that of the latents."""

    name = "Stable Diffusion 3"
    pipeline_name = "StableDiffusion3Pipeline"
    tag = "stable-diffusion-3"
    architecture = SD_3.architecture
    text_encoders = ("text_encoder", "text_encoder_2", "text_encoder_3")
    tokenizers = ("tokenizer", "tokenizer_2", "tokenizer_3")
    prompt_type = Prompt

    @property
    def tokens(self) -> int:
        """256, of T5; CLIP reads the first 77."""
        return 256

    def encode(self, texts: list[str]) -> Prompt:
        """Encode captions: CLIP's and T5's hidden states, and the pooled outputs of both CLIPs."""
        embeds, _, pooled, _ = self.pipeline.encode_prompt(
            texts,
            texts,
            texts,
            device=self.vae.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.tokens,
        )
        return Prompt(embeds, pooled)

    def empty_prompt(self, batch: int) -> Prompt:
        """Return encoded captions without their values."""
        first, second, t5 = (getattr(self.pipeline, name) for name in self.text_encoders)
        pooled = first.config.projection_dim + second.config.projection_dim
        return Prompt(
            torch.empty(batch, _CLIP_TOKENS + self.tokens, t5.config.d_model, dtype=t5.dtype),
            torch.empty(batch, pooled, dtype=first.dtype),
        )

    def conditions(self, prompt: Prompt) -> dict[str, Any]:
        """Return what the pipeline is called with."""
        return {"prompt_embeds": prompt.embeds, "pooled_prompt_embeds": prompt.pooled}

    def negative_conditions(self, prompt: Prompt) -> dict[str, Any]:
        """Return what the pipeline is called with for classifier-free guidance."""
        return {f"negative_{name}": part for name, part in self.conditions(prompt).items()}

    def call(self, module: nn.Module, noisy: Tensor, sigmas: Tensor, prompt: Prompt) -> Tensor:
        """Call the transformer, which takes timesteps from 0 to 1000."""
        found: Tensor = module(
            hidden_states=noisy,
            timestep=sigmas * self.noising.count,
            encoder_hidden_states=prompt.embeds,
            pooled_projections=prompt.pooled,
            return_dict=False,
        )[0]
        return found
