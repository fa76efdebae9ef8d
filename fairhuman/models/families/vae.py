"""Images to latents and back, for the families whose VAE is an AutoencoderKL of diffusers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fairhuman.common.units import DTYPES
from fairhuman.models.encoded import Posterior


@torch.no_grad()
def posterior_of(
    vae: Any,
    pixels: Tensor,
    encodes_in: torch.dtype,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Posterior:
    """Return the VAE's posterior of images, [B, C, H, W] each.

    One image at a time: what it gets does not depend on those next to it, and at full size more at
    a time take memory and save nothing.

    Args:
        vae: in float32.
        pixels: [B, 3, 8 H, 8 W] in [-1, 1].
        encodes_in: what to compute in.
        memory_format: of the pixels.
    """
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    means, stds = [], []
    for image in pixels.split(1):
        image = image.to(vae.device, torch.float32, memory_format=memory_format)
        lower = encodes_in != torch.float32
        with torch.autocast(image.device.type, encodes_in, enabled=lower):
            moments = vae.encode(image).latent_dist.parameters
        posterior = DiagonalGaussianDistribution(moments.float())
        means.append(posterior.mean)
        stds.append(posterior.std)
    return Posterior(torch.cat(means), torch.cat(stds))


def scaled(vae: Any, posterior: Posterior, noise: Tensor) -> Tensor:
    """Return a draw from a posterior, in the scale that the denoiser works in; float32.

    Args:
        vae: tells scale and shift.
        posterior: [B, C, H, W].
        noise: [B, C, H, W] standard normal: the draw.
    """
    drawn = posterior.mean + posterior.std * noise.to(posterior.mean)
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    latents: Tensor = (drawn - shift) * vae.config.scaling_factor
    return latents


def encoding(precision: str, vae: Any, denoiser: torch.dtype) -> torch.dtype:
    """Return what images are encoded in.

    Args:
        precision: `model.vae_precision`.
        vae: tells whether it overflows in half precision.
        denoiser: its dtype.
    """
    upcast = vae.config.get("force_upcast", True)  # FLUX.2's does not say
    halves = denoiser == torch.bfloat16 and not upcast
    automatic = "bf16" if halves else "fp32"
    return DTYPES[automatic if precision == "auto" else precision]


def moments_bytes(pipeline: Any, size: tuple[int, int]) -> int:
    """Return what the posterior of an image takes, in float32.

    Args:
        pipeline: with the VAE.
        size: width and height of the image in pixels.
    """
    width, height = (side // int(pipeline.vae_scale_factor) for side in size)
    return 2 * 4 * int(pipeline.vae.config.latent_channels) * width * height
