"""Pictures from a pipeline of SDXL."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fairhuman.models.drawing import DRAWN, Picture, batches, decode, sampled
from fairhuman.models.families.sdxl import captions


def draw(
    pipeline: Any,
    prompts: Sequence[str],
    *,
    seed: int,
    size: int,
    least_chunks: int = 1,
    most_chunks: int = 1,
    **settings: Any,
) -> list[Image.Image]:
    """Return one square picture per prompt, of the seeds from `seed` on; see `Picture`, `drawn`."""
    pictures = [
        Picture(prompt, seed + i, (size, size), **settings) for i, prompt in enumerate(prompts)
    ]
    return list(drawn(pipeline, pictures, least_chunks=least_chunks, most_chunks=most_chunks))


@torch.no_grad()
def drawn(
    pipeline: Any,
    pictures: Sequence[Picture],
    *,
    batch_size: int = DRAWN,
    least_chunks: int = 1,
    most_chunks: int = 1,
) -> Iterator[Image.Image]:
    """Yield the pictures in their order, as they are drawn.

    Args:
        pipeline: a StableDiffusionXLPipeline, or one of diffusers' with control images.
        pictures: what to draw.
        batch_size: how many are drawn at a time; only such as differ in nothing but their texts,
            seeds and control images are drawn together.
        least_chunks: of 75 tokens, in which every prompt is encoded.
        most_chunks: those that a longer prompt may have; the rest of it is cut.
    """
    tokens = captions.token_counts(
        pipeline, [text for picture in pictures for text in (picture.prompt, picture.negative)]
    )
    chunks = [
        max(least_chunks, min(most_chunks, captions.chunks_for(pipeline, max(pair))))
        for pair in zip(tokens[::2], tokens[1::2], strict=True)
    ]
    kinds = [
        (count, picture.size, picture.steps, picture.guidance, picture.lora_scale)
        for count, picture in zip(chunks, pictures, strict=True)
    ]
    for batch in batches(kinds, batch_size):
        together = [pictures[i] for i in batch]
        conditions = _conditions(pipeline, together, chunks[batch[0]])
        if controls := [picture.control for picture in together if picture.control]:
            conditions["image"] = controls
        latents = sampled(pipeline, together, conditions)
        # The pipeline decodes in the UNet's type; SDXL's VAE needs its own.
        vae = pipeline.vae
        yield from decode(vae, latents.to(vae.dtype) / vae.config.scaling_factor)


def _conditions(pipeline: Any, pictures: Sequence[Picture], chunks: int) -> dict[str, Any]:
    """Return encoded prompts and negative ones, as the pipeline takes them."""
    embeds, pooled = captions.encode(pipeline, [picture.prompt for picture in pictures], chunks)
    others: dict[str, tuple[Tensor, Tensor]] = {}
    for negative in dict.fromkeys(picture.negative for picture in pictures):
        if negative or not pipeline.config.force_zeros_for_empty_prompt:
            others[negative] = captions.encode(pipeline, [negative], chunks)
        else:
            others[negative] = torch.zeros_like(embeds[:1]), torch.zeros_like(pooled[:1])
    other, other_pooled = zip(*(others[picture.negative] for picture in pictures), strict=True)
    return {
        "prompt_embeds": embeds,
        "pooled_prompt_embeds": pooled,
        "negative_prompt_embeds": torch.cat(other),
        "negative_pooled_prompt_embeds": torch.cat(other_pooled),
    }
