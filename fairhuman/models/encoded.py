"""What the frozen models make of images and captions."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Posterior(NamedTuple):
    """The VAE's posterior of images, before scaling: float32."""

    mean: Tensor
    """[B, C, H, W]."""
    std: Tensor
    """[B, C, H, W]."""


class Prompt(NamedTuple):
    """Encoded captions."""

    embeds: Tensor
    """[B, 75 N + 2, D]: the penultimate hidden states of both text encoders, of N chunks."""
    pooled: Tensor
    """[B, D2]: the second encoder's pooled projection, of the first chunk."""
