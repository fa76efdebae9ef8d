"""FLUX.1 (Black Forest Labs 2024): dev, which guidance was distilled into, and schnell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fairhuman.config import Model
from fairhuman.models.encoded import Prompt
from fairhuman.models.families.flow import FlowTransformer
from fairhuman.models.formats.originals import FLUX_1


class Flux(FlowTransformer):
    """FLUX.1: T5 and CLIP read the captions, tokens are patches of 2 x 2 cells."""

    name = "FLUX.1"
    pipeline_name = "FluxPipeline"
    tag = "flux"
    architecture = FLUX_1.guided
    text_encoders = ("text_encoder", "text_encoder_2")
    tokenizers = ("tokenizer", "tokenizer_2")
    prompt_type = Prompt

    def __init__(self, pipeline: Any, settings: Model) -> None:
        super().__init__(pipeline, settings)
        if not self._guided:
            self.architecture = FLUX_1.architecture

    @property
    def tokens(self) -> int:
        """512 of dev, 256 of schnell, which was trained on no more."""
        return 512 if self._guided else 256

    def encode(self, texts: list[str]) -> Prompt:
        """Encode captions: T5's last hidden states, [B, tokens, D], and CLIP's pooled output."""
        embeds, pooled, _ = self.pipeline.encode_prompt(
            texts, device=self.vae.device, max_sequence_length=self.tokens
        )
        return Prompt(embeds, pooled)

    def empty_prompt(self, batch: int) -> Prompt:
        """Return encoded captions without their values."""
        clip, t5 = self.pipeline.text_encoder, self.pipeline.text_encoder_2
        return Prompt(
            torch.empty(batch, self.tokens, t5.config.d_model, dtype=t5.dtype),
            torch.empty(batch, clip.config.hidden_size, dtype=clip.dtype),
        )

    @property
    def lora_targets(self) -> Sequence[str]:
        """Attention and feed-forward layers of both streams."""
        return (
            *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
            *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
            *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
        )

    def conditions(self, prompt: Prompt) -> dict[str, Any]:
        """Return what the pipeline is called with; its guidance is an input of the transformer."""
        return {"prompt_embeds": prompt.embeds, "pooled_prompt_embeds": prompt.pooled}

    def call(self, module: nn.Module, noisy: Tensor, sigmas: Tensor, prompt: Prompt) -> Tensor:
        """Call the transformer on patches, with their places in the grid."""
        batch, channels, height, width = noisy.shape
        pack, unpack = self.pipeline._pack_latents, self.pipeline._unpack_latents
        places = self.pipeline._prepare_latent_image_ids(
            batch, height // 2, width // 2, noisy.device, noisy.dtype
        )
        guidance = None
        if self._guided:
            guidance = torch.full((batch,), self.guidance, device=noisy.device)
        predicted = module(
            hidden_states=pack(noisy, batch, channels, height, width),
            timestep=sigmas,
            guidance=guidance,
            pooled_projections=prompt.pooled,
            encoder_hidden_states=prompt.embeds,
            txt_ids=noisy.new_zeros(prompt.embeds.shape[1], 3),
            img_ids=places,
            return_dict=False,
        )[0]
        found: Tensor = unpack(predicted, self.cell * height, self.cell * width, self.cell)
        return found

    def to_vae(self, latents: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the patches that the pipeline draws as the VAE decodes them."""
        width, height = size
        grid = self.pipeline._unpack_latents(latents, height, width, self.cell)
        return super().to_vae(grid, size)

    @property
    def _guided(self) -> bool:
        config: Any = self.pipeline.transformer.config
        return bool(config.guidance_embeds)
