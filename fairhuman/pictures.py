"""Pictures from a pipeline: fixed prompts and seeds, and a grid of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

DRAWN = 4
"""Pictures that are drawn together, if nothing else is said."""


@torch.no_grad()
def draw(
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
) -> list[Image.Image]:
    """Return one picture per prompt; picture i depends on seed + i alone, on any device.

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
    """
    pictures: list[Image.Image] = []
    for start in range(0, len(prompts), batch_size):
        batch = list(prompts[start : start + batch_size])
        extra = {"image": list(controls[start : start + batch_size])} if controls else {}
        latents = pipeline(
            prompt=batch,
            negative_prompt=[negative] * len(batch) if negative else None,
            height=size,
            width=size,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(seed + start + i) for i in range(len(batch))],
            output_type="latent",
            **extra,
        ).images
        # The pipeline decodes in the UNet's type; SDXL's VAE needs its own.
        vae = pipeline.vae
        pictures += decode(vae, latents.to(vae.dtype) / vae.config.scaling_factor)
    return pictures


@torch.no_grad()
def decode(vae: Any, latents: Tensor) -> list[Image.Image]:
    """Return the pictures of latents [B, C, H, W], in the VAE's own scale and type."""
    pictures = []
    for latent in latents.split(1):  # at 1024 px each takes gigabytes in float32
        decoded = vae.decode(latent).sample[0]
        values = ((decoded.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        pictures.append(Image.fromarray(values.permute(1, 2, 0).cpu().numpy()))
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
