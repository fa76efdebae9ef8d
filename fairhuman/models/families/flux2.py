"""FLUX.2 klein (Black Forest Labs 2026), of 4 and 9 billion parameters, base and distilled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fairhuman.config import Model
from fairhuman.models.encoded import Posterior
from fairhuman.models.families.flow import FlowTransformer
from fairhuman.models.families.qwen import TOKENS, user_turn
from fairhuman.models.formats.originals import FLUX_2

_STEPS = 50
"""Of sampling, for which the pipeline shifts its timesteps unless other are asked for."""


class Embeds(NamedTuple):
    """Encoded captions."""

    embeds: Tensor
    """[B, 512, D]: Qwen3's hidden states of three layers."""


class Flux2Klein(FlowTransformer):
    """FLUX.2 klein: patches of 2 x 2 latents, whitened by a batch norm's means and variances.

    The grid is that of the patches, with cells of 16 pixels.
    """

    name = "FLUX.2 klein"
    pipeline_name = "Flux2KleinPipeline"
    tag = "flux-2"
    architecture = FLUX_2.architecture
    text_encoders = ("text_encoder",)
    prompt_type = Embeds
    patch = 1

    def __init__(self, pipeline: Any, settings: Model) -> None:
        super().__init__(pipeline, settings)
        self.cell *= 2
        self.channels *= 4

    @property
    def tokens(self) -> int:
        """512, with those of the chat's turn."""
        return TOKENS

    def read_as(self, text: str) -> str:
        """Return the turn of a user, as the pipeline writes it."""
        return user_turn(self.pipeline.tokenizer, text, thinking=False)

    def encode(self, texts: list[str]) -> Embeds:
        """Encode captions as the turn of a user, padded to 512 tokens."""
        embeds, _ = self.pipeline.encode_prompt(
            texts, device=self.vae.device, max_sequence_length=self.tokens
        )
        return Embeds(embeds)

    def empty_prompt(self, batch: int) -> Embeds:
        """Return encoded captions without their values."""
        encoder = self.pipeline.text_encoder
        width = 3 * encoder.config.hidden_size
        return Embeds(torch.empty(batch, self.tokens, width, dtype=encoder.dtype))

    @property
    def lora_targets(self) -> Sequence[str]:
        """Attention projections of the double blocks, and the fused ones of the single blocks."""
        single = range(self.pipeline.transformer.config.num_single_layers)
        return (
            *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.to_qkv_mlp_proj"),
            *(f"single_transformer_blocks.{i}.attn.to_out" for i in single),
        )

    def conditions(self, prompt: Embeds) -> dict[str, Any]:
        """Return what the pipeline is called with."""
        return {"prompt_embeds": prompt.embeds}

    def negative_conditions(self, prompt: Embeds) -> dict[str, Any]:
        """Return what the pipeline is called with; it is distilled where that is not read."""
        return {"negative_prompt_embeds": prompt.embeds}

    def latents(self, posterior: Posterior, noise: Tensor) -> Tensor:
        """Return whitened patches of the posterior's mean, [B, 4 C, H / 2, W / 2].

        The model was trained on means: `noise` is not read.
        """
        patches: Tensor = self.pipeline._patchify_latents(posterior.mean)
        norm = self.vae.bn
        mean, variance = (
            part.view(1, -1, 1, 1).to(patches) for part in (norm.running_mean, norm.running_var)
        )
        return (patches - mean) / torch.sqrt(variance + self.vae.config.batch_norm_eps)

    def call(self, module: nn.Module, noisy: Tensor, sigmas: Tensor, prompt: Embeds) -> Tensor:
        """Call the transformer on patches, with their places in the grid."""
        places = self.pipeline._prepare_latent_ids(noisy).to(noisy.device)
        predicted = module(
            hidden_states=self.pipeline._pack_latents(noisy),
            timestep=sigmas,
            guidance=None,
            encoder_hidden_states=prompt.embeds,
            txt_ids=self.pipeline._prepare_text_ids(prompt.embeds).to(noisy.device),
            img_ids=places,
            return_dict=False,
        )[0]
        found: Tensor = predicted.mT.reshape(noisy.shape)
        return found

    def mu(self, tokens: int) -> float:
        """Return the logarithm of the shift, as the pipeline has it for its usual 50 steps."""
        from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

        return float(compute_empirical_mu(tokens, _STEPS))

    def to_vae(self, latents: Tensor, size: tuple[int, int]) -> Tensor:
        """Return what the pipeline draws: in the VAE's own scale already."""
        return latents
