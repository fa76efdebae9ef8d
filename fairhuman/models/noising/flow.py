"""Rectified flow (Liu et al. 2022, arXiv 2209.03003): a straight line from the image to noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fairhuman.common.errors import ConfigError


class RectifiedFlow:
    """x_s = (1 - s) x_0 + s noise, of which the model predicts noise - x_0.

    A timestep t of `count` stands for s = shift((t + 1) / count), as in diffusers'
    FlowMatchEulerDiscreteScheduler: s -> f s / (1 + (f - 1) s). The factor f is a constant of the
    scheduler (`shift`), or grows with the image (`use_dynamic_shifting`; Esser et al. 2024, arXiv
    2403.03206, eq. 23).

    Args:
        config: of the pipeline's scheduler.
        patch: cells of the latent grid per side of one of the transformer's tokens.
        mu: the logarithm of f for an image of so many tokens, or f itself where the scheduler says
            `time_shift_type: linear`.
    """

    def __init__(self, config: Any, patch: int, mu: Callable[[int], float]) -> None:
        self.config = config
        self.patch = patch
        self.mu = mu
        self.count: int = config.num_train_timesteps

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
            shift = self.mu(grid[0] * grid[1] // self.patch**2)
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
