"""What the examples train: a small denoiser, pictures with two regions, and three losses."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fairhuman import region_mse

REGIONS = ("whole", "disc", "square")
BATCH, SIDE = 16, 24


class Denoiser(nn.Module):
    """Predicts the noise in a picture, [B, 3, H, W] from [B, 3, H, W]."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.SiLU(),
        )
        self.outer = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, noisy: Tensor) -> Tensor:
        """Return the predicted noise."""
        prediction: Tensor = self.outer(self.inner(noisy))
        return prediction


def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the whole batch of a step: pictures, noise, and the masks [B, 2, H, W] of the regions.

    Each picture has a large disc and a small square of stripes, which are harder to denoise.
    """
    random = torch.Generator().manual_seed(step)
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    centers = torch.randint(6, SIDE - 6, (BATCH, 2, 2, 1, 1), generator=random)
    disc = ((y - centers[:, 0, 0]) ** 2 + (x - centers[:, 0, 1]) ** 2 < 30).float()
    square = ((y - centers[:, 1, 0]).abs() + (x - centers[:, 1, 1]).abs() < 4).float()
    colours = torch.rand(BATCH, 3, 1, 1, generator=random)
    pictures = colours + disc[:, None] * (1 - 2 * colours) + square[:, None] * (2 * (x % 2) - 1)
    noise = torch.randn(BATCH, 3, SIDE, SIDE, generator=random)
    return pictures, noise, torch.stack([disc, square], dim=1)


def three_losses(model: nn.Module, pictures: Tensor, noise: Tensor, masks: Tensor) -> Tensor:
    """Return the losses [3] of the whole picture, the disc and the square, of one forward pass."""
    return region_mse(model(pictures + noise), noise, masks)


def line(step: int, losses: Tensor) -> str:
    """Return a step's losses as text."""
    named = zip(REGIONS, losses.tolist(), strict=True)
    return f"step {step}: " + ", ".join(f"{name} {loss:.4f}" for name, loss in named)
