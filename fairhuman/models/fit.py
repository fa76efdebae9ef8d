"""Fits the tiny SDXL to pictures for a short while, so that the demo starts from a model.

A stand-in for the pre-training that the real SDXL comes with: first the VAE, then the UNet with
the plain denoising loss. Not a trainer: one process, one fixed recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fairhuman.models.sdxl import SDXL
from fairhuman.objectives import snr_weight

Progress = Callable[[str, int, int, float], None]
"""Called with stage, step, steps and loss."""


def fit_vae(
    vae: Any, pixels: Tensor, *, steps: int, seed: int, progress: Progress, batch: int = 16
) -> None:
    """Fit the VAE to pictures [N, 3, H, W] in [-1, 1], and set its scaling factor.

    Trained on crops, because the network is convolutional and small pictures are faster.
    """
    rng = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=4e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    side = min(64, pixels.shape[-1])
    vae.train()
    for step in range(1, steps + 1):
        crops = _crops(pixels, side, batch, rng)
        posterior = vae.encode(crops).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=rng)
        decoded = vae.decode(posterior.mean + posterior.std * noise).sample
        # Edges carry the eyes and fingers, which are a few per cent of the pixels.
        loss = F.l1_loss(decoded, crops) + 0.5 * _edge_loss(decoded, crops)
        loss = loss + 1e-6 * posterior.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress("VAE", step, steps, loss.item())
    vae.eval()
    latents = _encode(vae, pixels)
    # SDXL's convention: scaled latents have unit standard deviation.
    vae.register_to_config(scaling_factor=1.0 / float(latents.std()))


def fit_unet(
    sdxl: SDXL,
    pixels: Tensor,
    captions: Sequence[str],
    time_ids: Tensor,
    *,
    steps: int,
    seed: int,
    progress: Progress,
    batch: int = 32,
) -> None:
    """Fit the UNet to pictures with their captions; a tenth of the captions is dropped.

    Args:
        sdxl: with the VAE already fitted.
        pixels: [N, 3, H, W] in [-1, 1].
        captions: N texts.
        time_ids: [6], the micro-conditioning of all pictures.
        steps: optimizer steps.
        seed: of order, noise and timesteps.
        progress: told of every step.
        batch: samples per step.
    """
    rng = torch.Generator().manual_seed(seed)
    unet = sdxl.unet
    latents = _encode(sdxl.vae, pixels) * sdxl.vae.config.scaling_factor
    prompts = sdxl.encode_captions(list(captions))
    dropped = sdxl.encode_captions([None])
    optimizer = torch.optim.AdamW(unet.parameters(), lr=2e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    unet.train()
    for step in range(1, steps + 1):
        index = torch.randint(len(latents), (batch,), generator=rng)
        times = torch.randint(len(sdxl.alphas_cumprod), (batch,), generator=rng)
        noise = torch.randn(batch, *latents.shape[1:], generator=rng)
        keep = torch.rand(batch, generator=rng) >= 0.1
        prompt = type(prompts)(
            torch.where(keep[:, None, None], prompts.embeds[index], dropped.embeds),
            torch.where(keep[:, None], prompts.pooled[index], dropped.pooled),
        )
        noisy = sdxl.add_noise(latents[index], noise, times)
        pred = sdxl.predict(unet, noisy, times, prompt, time_ids.expand(batch, -1))
        weight = snr_weight(sdxl.prediction_type, sdxl.alphas_cumprod, times, gamma=5.0)
        assert weight is not None
        loss = ((pred - noise).square().mean(dim=(1, 2, 3)) * weight).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress("UNet", step, steps, loss.item())
    unet.eval()


def _crops(pixels: Tensor, side: int, count: int, rng: torch.Generator) -> Tensor:
    index = torch.randint(len(pixels), (count,), generator=rng).tolist()
    # Steps of a latent cell, so that crops have the cells that whole pictures have.
    span = (pixels.shape[-1] - side) // 8 + 1
    corners = torch.randint(span, (count, 2), generator=rng).mul(8).tolist()
    return torch.stack(
        [
            pixels[i, :, top : top + side, left : left + side]
            for i, (top, left) in zip(index, corners, strict=True)
        ]
    )


def _edge_loss(decoded: Tensor, target: Tensor) -> Tensor:
    across = F.l1_loss(decoded.diff(dim=-1), target.diff(dim=-1))
    return across + F.l1_loss(decoded.diff(dim=-2), target.diff(dim=-2))


@torch.no_grad()
def _encode(vae: Any, pixels: Tensor) -> Tensor:
    return torch.cat([vae.encode(part).latent_dist.mean for part in pixels.split(32)])
