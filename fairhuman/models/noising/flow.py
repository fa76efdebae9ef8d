"""Rectified flow (Liu et al. 2022, arXiv 2209.03003): a straight line from the image to noise."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fairhuman.common.errors import ConfigError


class RectifiedFlow:
    """x_s = (1 - s) x_0 + s noise, of which the model predicts noise - x_0.

    A timestep t of `count` stands for s = shift((t + 1) / count), as in diffusers'
    FlowMatchEulerDiscreteScheduler. The shift is the scheduler's: a constant (`shift`) or one that
    grows with the image (`use_dynamic_shifting`; Esser et al. 2024, arXiv 2403.03206, eq. 23).

    Args:
        scheduler: of the pipeline.
        patch: pixels of the latent grid per side of one of the transformer's tokens.
    """

    def __init__(self, scheduler: Any, patch: int) -> None:
        self.config = scheduler.config
        self.patch = patch
        self.count: int = self.config.num_train_timesteps

    def to(self, device: torch.device) -> None:
        """Hold nothing on a device."""

    def sigmas(self, steps: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the share of noise at timesteps, [B] float32.

        Args:
            steps: [B] int64.
            grid: height and width of the latents.
        """
        even = (steps + 1).double() / self.count
        if not self.config.use_dynamic_shifting:
            shift = self.config.shift
        else:
            shift = self._mu(grid[0] * grid[1] // self.patch**2)
            if self.config.time_shift_type == "exponential":
                shift = math.exp(shift)
        return (shift * even / (1 + (shift - 1) * even)).float()

    def add_noise(self, latents: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
        """Return (1 - s) x_0 + s noise, [B, C, H, W]."""
        sigma = self._sigmas_of(latents, steps)
        return (1 - sigma) * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
        """Return noise - x_0, [B, C, H, W]."""
        return noise - latents

    def sample_weight(self, steps: Tensor, gamma: float | None) -> Tensor | None:
        """Return None: all samples weigh the same.

        Raises:
            ConfigError: min-SNR weights are asked for.
        """
        if gamma is not None:
            raise ConfigError(
                f"objectives.snr_gamma = {gamma}: min-SNR weights are for models that predict the "
                "noise or v, and this one is a rectified flow; set it to null"
            )
        return None

    def _sigmas_of(self, latents: Tensor, steps: Tensor) -> Tensor:
        height, width = latents.shape[-2:]
        return self.sigmas(steps, (height, width)).to(latents)[:, None, None, None]

    def _mu(self, tokens: int) -> float:
        least, most = self.config.base_image_seq_len, self.config.max_image_seq_len
        slope = (self.config.max_shift - self.config.base_shift) / (most - least)
        return float(self.config.base_shift + slope * (tokens - least))
