"""The discrete diffusion of DDPM (Ho et al. 2020): SDXL's, of which the noise or v is predicted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class DDPM:
    """A noise schedule and what its model predicts.

    Args:
        scheduler: of a pipeline; any of diffusers' whose config carries betas.
    """

    def __init__(self, scheduler: Any) -> None:
        from diffusers import DDPMScheduler

        # Training needs only the noise schedule, which every scheduler config carries.
        schedule = DDPMScheduler.from_config(scheduler.config)
        self.prediction_type: str = schedule.config.prediction_type
        self.alphas_cumprod: Tensor = schedule.alphas_cumprod

    @property
    def count(self) -> int:
        """Of the timesteps."""
        return len(self.alphas_cumprod)

    def to(self, device: torch.device) -> None:
        """Move the schedule to where the latents are."""
        self.alphas_cumprod = self.alphas_cumprod.to(device)

    def add_noise(self, latents: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
        """Return sqrt(a_t) x_0 + sqrt(1 - a_t) noise, [B, C, H, W]."""
        alpha = self.alphas_cumprod.to(latents)[steps][:, None, None, None]
        return alpha.sqrt() * latents + (1 - alpha).sqrt() * noise

    def target(self, latents: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
        """Return what the model must predict, [B, C, H, W]; see `target`."""
        return target(self.prediction_type, latents, noise, self.alphas_cumprod, steps)

    def sample_weight(self, steps: Tensor, gamma: float | None) -> Tensor | None:
        """Return the min-SNR weight of each sample; see `snr_weight`."""
        return snr_weight(self.prediction_type, self.alphas_cumprod, steps, gamma)


def target(
    prediction_type: str, latents: Tensor, noise: Tensor, alphas_cumprod: Tensor, steps: Tensor
) -> Tensor:
    """Return what the model must predict, [B, C, H, W]: the noise, or the velocity v.

    v = sqrt(a_t) noise - sqrt(1 - a_t) x_0 (Salimans & Ho 2022, eq. 8).
    """
    if prediction_type == "epsilon":
        return noise
    alpha = alphas_cumprod.to(latents)[steps][:, None, None, None]
    return alpha.sqrt() * noise - (1 - alpha).sqrt() * latents


def snr_weight(
    prediction_type: str, alphas_cumprod: Tensor, steps: Tensor, gamma: float | None
) -> Tensor | None:
    """Return the min-SNR weight of each sample, [B] float32, or None for equal weights.

    min(SNR, gamma) / SNR for the noise, min(SNR, gamma) / (SNR + 1) for v (Hang et al. 2023,
    arXiv 2303.09556), with SNR = a_t / (1 - a_t). At zero SNR the weight of v is 0: there all of
    v is the image, and min-SNR gives the image's error the weight min(SNR, gamma).
    """
    if gamma is None:
        return None
    alpha = alphas_cumprod.float()[steps]
    snr = alpha / (1 - alpha)
    clipped = snr.clamp(max=gamma)
    if prediction_type == "v_prediction":
        return clipped / (snr + 1)
    # At zero terminal SNR the noise cannot be told from the input: the ratio's limit is 1.
    return torch.where(snr > 0, clipped / snr.clamp(min=1e-20), torch.ones_like(snr))
