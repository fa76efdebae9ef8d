"""Z-Image (Tongyi-MAI 2025): one stream of caption and image tokens, captions read by Qwen3."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fairhuman.models.families.flow import FlowTransformer
from fairhuman.models.families.qwen import TOKENS, user_turn
from fairhuman.models.formats.originals import Z_IMAGE


class Padded(NamedTuple):
    """Captions of unlike lengths."""

    embeds: Tensor
    """[B, tokens, D]: the last hidden states but one; 0 after a caption's end."""
    lengths: Tensor | None
    """[B] int64; None: all are as long as they may be."""


class ZImage(FlowTransformer):
    """Z-Image: it predicts image - noise, at times that run from noise to image."""

    name = "Z-Image"
    pipeline_name = "ZImagePipeline"
    tag = "z-image"
    architecture = Z_IMAGE.architecture
    text_encoders = ("text_encoder",)
    prompt_type = Padded

    @property
    def tokens(self) -> int:
        """512, with those of the chat's turn."""
        return TOKENS

    def read_as(self, text: str) -> str:
        """Return the turn of a user, as the pipeline writes it."""
        return user_turn(self.pipeline.tokenizer, text, thinking=True)

    def encode(self, texts: list[str]) -> Padded:
        """Encode captions as the turn of a user."""
        states, _ = self.pipeline.encode_prompt(
            texts,
            device=self.vae.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.tokens,
        )
        embeds = states[0].new_zeros(len(states), self.tokens, states[0].shape[-1])
        for row, state in zip(embeds, states, strict=True):
            row[: len(state)] = state
        lengths = torch.tensor([len(state) for state in states], device=embeds.device)
        return Padded(embeds, lengths)

    def empty_prompt(self, batch: int) -> Padded:
        """Return encoded captions without their values, as long as they may be."""
        encoder = self.pipeline.text_encoder
        width = encoder.config.hidden_size
        embeds = torch.empty(batch, self.tokens, width, dtype=encoder.dtype)
        return Padded(embeds, None)

    def conditions(self, prompt: Padded) -> dict[str, Any]:
        """Return what the pipeline is called with."""
        return {"prompt_embeds": _rows(prompt)}

    def negative_conditions(self, prompt: Padded) -> dict[str, Any]:
        """Return what the pipeline is called with for classifier-free guidance."""
        return {"negative_prompt_embeds": _rows(prompt)}

    def call(self, module: nn.Module, noisy: Tensor, sigmas: Tensor, prompt: Padded) -> Tensor:
        """Call the transformer, which takes images as lists of [C, 1, H, W]."""
        found = module(list(noisy.unsqueeze(2)), 1 - sigmas, _rows(prompt), return_dict=False)[0]
        return -torch.stack(found).squeeze(2)


def _rows(prompt: Padded) -> list[Tensor]:
    """Return each caption's hidden states, [length, D]."""
    if prompt.lengths is None:
        return list(prompt.embeds)
    lengths = prompt.lengths.tolist()
    return [row[:length] for row, length in zip(prompt.embeds, lengths, strict=True)]
