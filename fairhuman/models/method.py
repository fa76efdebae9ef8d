"""What of a model is trained, and what is saved of it: the only place where methods differ."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from fairhuman.common.files import replacing
from fairhuman.config import Model
from fairhuman.models.families.protocol import Family
from fairhuman.models.families.sdxl.control import ControlNet, T2IAdapter
from fairhuman.models.families.sdxl.model import SDXL
from fairhuman.models.formats.lora import WEIGHTS_NAME, describe
from fairhuman.models.lora import LoRA
from fairhuman.models.quantized import quantize_blocks, quantized_layers


class Method(Protocol):
    """A way to train a model."""

    module: nn.Module
    """What the training step calls; its parameters that require gradients are trained."""
    pipeline: Any
    """Draws pictures with what is trained."""

    def write(self, folder: Path) -> None:
        """Write what was trained into a folder, in diffusers' layout."""


class Full:
    """Full fine-tuning of the denoiser."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.module = family.denoiser
        self.pipeline = family.pipeline
        self.module.requires_grad_(True)

    def write(self, folder: Path) -> None:
        """Write the whole pipeline."""
        self.family.write(folder)


def make_method(
    family: Family, settings: Model, seed: int, device: torch.device | None = None
) -> Method:
    """Make the model ready to be trained as `model.method` says.

    Args:
        family: freshly loaded.
        settings: the section `model`.
        seed: of what is initialised at random; give every rank the same.
        device: where `model.quantize` quantizes the weights; None: where they are.

    Raises:
        ConfigError: the model has nothing that the method's settings name.
    """
    if settings.quantize:
        quantize_blocks(family.denoiser, settings.quantize, device)
    if settings.method == "lora":
        return LoRA(family, settings.lora, seed, settings.gradient_checkpointing)
    if not settings.conditioned:
        return Full(family)
    assert isinstance(family, SDXL), "the other families refuse it"
    if settings.method == "controlnet":
        return ControlNet(family, settings.control, seed, settings.gradient_checkpointing)
    return T2IAdapter(family, settings.control, seed)


def frozen_digest(module: nn.Module) -> str | None:
    """Return a digest of the weights that are not trained, None if there are none.

    Of the first numbers of each: quick, and enough to tell one base model from another.
    """
    frozen = [p.detach() for p in module.parameters() if not p.requires_grad]
    frozen += [layer.values for layer in quantized_layers(module)]
    first = [part.reshape(-1)[:16].float() for part in frozen]
    if not first:
        return None
    return hashlib.blake2b(torch.cat(first).cpu().numpy().tobytes(), digest_size=20).hexdigest()


def save(
    method: Method,
    folder: Path,
    *,
    title: str = "",
    architecture: str = "",
    resolution: int = 1024,
) -> None:
    """Write what was trained: whole, in place of what was there, or not at all.

    Args:
        method: what is trained.
        folder: to write to.
        title: what a LoRA's header calls it; empty: the header is diffusers' alone.
        architecture: the base model's, for that header.
        resolution: side in pixels of the images that it was trained on, for that header.

    Raises:
        OutputError: it cannot be written; what was there still is.
    """
    with replacing(folder) as aside:
        method.write(aside)
        if title and (aside / WEIGHTS_NAME).is_file():
            describe(aside / WEIGHTS_NAME, title, architecture, resolution)
