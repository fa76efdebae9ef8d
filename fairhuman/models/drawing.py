"""Pictures from a pipeline: fixed prompts and seeds, and a grid of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fairhuman.common.pixels import to_image
from fairhuman.models.lora_scale import lora_scaled

DRAWN = 4
"""Pictures that are drawn together, if nothing else is said."""


@dataclass(frozen=True)
class Picture:
    """A picture to draw. Those that are drawn with it change it by rounding alone."""

    prompt: str
    seed: int
    """Of its noise."""
    size: tuple[int, int]
    """Width and height in pixels."""
    negative: str = ""
    """What it should not show."""
    steps: int = 30
    """Of the sampler."""
    guidance: float = 5.0
    """Scale of classifier-free guidance."""
    control: Image.Image | None = None
    """Its control image, for a pipeline that takes them."""
    lora_scale: float | None = None
    """Factor on the pipeline's LoRA; None: the one that is set."""


def batches(kinds: Sequence[object], size: int) -> Iterator[range]:
    """Yield the places of pictures of one kind that follow each other, so many at most."""
    start = 0
    for stop in range(1, len(kinds) + 1):
        if stop == len(kinds) or stop - start == size or kinds[stop] != kinds[start]:
            yield range(start, stop)
            start = stop


def sampled(pipeline: Any, pictures: Sequence[Picture], conditions: Mapping[str, Any]) -> Tensor:
    """Return the latents of pictures that differ in texts, seeds and control images alone.

    Args:
        pipeline: of diffusers.
        pictures: that are drawn together.
        conditions: what the pipeline is called with for their texts and control images.
    """
    first = pictures[0]
    with lora_scaled(pipeline, first.lora_scale):
        latents: Tensor = pipeline(
            **conditions,
            width=first.size[0],
            height=first.size[1],
            num_inference_steps=first.steps,
            guidance_scale=first.guidance,
            generator=[torch.Generator().manual_seed(picture.seed) for picture in pictures],
            output_type="latent",
        ).images
    return latents


@torch.no_grad()
def decode(vae: Any, latents: Tensor) -> list[Image.Image]:
    """Return the pictures of latents [B, C, H, W], in the VAE's own scale and type."""
    pictures = []
    for latent in latents.split(1):  # at 1024 px each takes gigabytes in float32
        decoded = vae.decode(latent).sample[0]
        pictures.append(to_image(decoded))
    return pictures


def grid(pictures: Sequence[Image.Image], columns: int | None = None, gap: int = 4) -> Image.Image:
    """Return the pictures in rows, as near to a square as they go; each in a cell of the largest's
    sides."""
    columns = columns or int(np.ceil(np.sqrt(len(pictures))))
    rows = -(-len(pictures) // columns)
    width, height = (max(picture.size[side] for picture in pictures) for side in (0, 1))
    sheet = Image.new(
        "RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), (255, 255, 255)
    )
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        sheet.paste(picture, (gap + column * (width + gap), gap + row * (height + gap)))
    return sheet
