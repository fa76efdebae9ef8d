"""Pictures from a pipeline: fixed prompts and seeds, and a grid of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fairhuman.common.pixels import to_image
from fairhuman.models.families.sdxl import captions

DRAWN = 4
"""Pictures that are drawn together, if nothing else is said."""


def draw(pipeline: Any, prompts: Sequence[str], **settings: Any) -> list[Image.Image]:
    """Return one picture per prompt; see `drawn`."""
    return list(drawn(pipeline, prompts, **settings))


@torch.no_grad()
def drawn(
    pipeline: Any,
    prompts: Sequence[str],
    *,
    seed: int,
    size: int,
    steps: int = 30,
    guidance: float = 5.0,
    negative: str = "",
    batch_size: int = DRAWN,
    controls: Sequence[Image.Image] = (),
    least_chunks: int = 1,
    most_chunks: int = 1,
) -> Iterator[Image.Image]:
    """Yield one picture per prompt, as they are drawn; picture i depends on seed + i alone.

    Args:
        pipeline: a StableDiffusionXLPipeline, or one of diffusers' with control images.
        prompts: the texts.
        seed: of the first picture's noise.
        size: width and height in pixels.
        steps: of the sampler.
        guidance: scale of classifier-free guidance.
        negative: what the pictures should not show.
        batch_size: how many are drawn at a time.
        controls: the control image of each picture, for a pipeline that takes them.
        least_chunks: of 75 tokens, in which every prompt is encoded.
        most_chunks: those that a longer prompt may have; the rest of it is cut.
    """
    needed = captions.token_counts(pipeline, [negative, *prompts])
    chunks = [
        max(least_chunks, min(most_chunks, captions.chunks_for(pipeline, max(needed[0], count))))
        for count in needed[1:]
    ]
    for batch in _batches(chunks, batch_size):
        extra = {"image": [controls[i] for i in batch]} if controls else {}
        latents = pipeline(
            **_conditions(pipeline, [prompts[i] for i in batch], negative, chunks[batch[0]]),
            height=size,
            width=size,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(seed + i) for i in batch],
            output_type="latent",
            **extra,
        ).images
        # The pipeline decodes in the UNet's type; SDXL's VAE needs its own.
        vae = pipeline.vae
        yield from decode(vae, latents.to(vae.dtype) / vae.config.scaling_factor)


def _batches(chunks: Sequence[int], size: int) -> Iterator[range]:
    """Yield the pictures that are drawn together: their prompts have as many chunks each."""
    start = 0
    for stop in range(1, len(chunks) + 1):
        if stop == len(chunks) or stop - start == size or chunks[stop] != chunks[start]:
            yield range(start, stop)
            start = stop


def _conditions(pipeline: Any, prompts: list[str], negative: str, chunks: int) -> dict[str, Tensor]:
    """Return encoded prompts, and as many of the negative one, as the pipeline takes them."""
    embeds, pooled = captions.encode(pipeline, prompts, chunks)
    if negative or not pipeline.config.force_zeros_for_empty_prompt:
        other, other_pooled = captions.encode(pipeline, [negative], chunks)
    else:
        other, other_pooled = torch.zeros_like(embeds[:1]), torch.zeros_like(pooled[:1])
    return {
        "prompt_embeds": embeds,
        "pooled_prompt_embeds": pooled,
        "negative_prompt_embeds": other.expand_as(embeds),
        "negative_pooled_prompt_embeds": other_pooled.expand_as(pooled),
    }


@torch.no_grad()
def decode(vae: Any, latents: Tensor) -> list[Image.Image]:
    """Return the pictures of latents [B, C, H, W], in the VAE's own scale and type."""
    pictures = []
    for latent in latents.split(1):  # at 1024 px each takes gigabytes in float32
        decoded = vae.decode(latent).sample[0]
        pictures.append(to_image(decoded))
    return pictures


def grid(pictures: Sequence[Image.Image], columns: int | None = None, gap: int = 4) -> Image.Image:
    """Return the pictures in rows, as near to a square as they go."""
    columns = columns or int(np.ceil(np.sqrt(len(pictures))))
    rows = -(-len(pictures) // columns)
    width, height = pictures[0].size
    sheet = Image.new(
        "RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), (255, 255, 255)
    )
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        sheet.paste(picture, (gap + column * (width + gap), gap + row * (height + gap)))
    return sheet
