"""Low-rank adaptation of the UNet (Hu et al. 2021, arXiv 2106.09685), by peft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from fairhuman.config import Lora
from fairhuman.errors import ConfigError
from fairhuman.models.sdxl import SDXL

ADAPTER = "default"


class LoRA:
    """Trains W + (alpha / rank) B A in place of each target's weight W, which stays as it is.

    Args:
        sdxl: its UNet gets the adapters, in its own precision.
        settings: rank, alpha and targets.
        seed: of A, normal with standard deviation 1 / rank; B is 0, so that training starts from
            the model as it is.

    Raises:
        ConfigError: the UNet has no layer that a target names, or one that cannot be adapted.
    """

    def __init__(self, sdxl: SDXL, settings: Lora, seed: int) -> None:
        from peft import LoraConfig

        unet: Any = sdxl.unet
        _check_targets(unet, settings.targets)
        unet.requires_grad_(False)
        config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.rank if settings.alpha is None else settings.alpha,  # type: ignore[arg-type]
            target_modules=list(settings.targets),
            init_lora_weights="gaussian",
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            unet.add_adapter(config, ADAPTER)
        self.module: nn.Module = unet
        self.pipeline = sdxl.pipeline

    def write(self, folder: Path) -> None:
        """Write pytorch_lora_weights.safetensors, with rank and alpha in its header."""
        from diffusers import StableDiffusionXLPipeline
        from peft.utils import get_peft_model_state_dict

        unet: Any = self.module
        StableDiffusionXLPipeline.save_lora_weights(
            folder,
            unet_lora_layers=get_peft_model_state_dict(unet, adapter_name=ADAPTER),
            unet_lora_adapter_metadata=unet.peft_config[ADAPTER].to_dict(),
            safe_serialization=True,
        )


def _check_targets(unet: nn.Module, targets: list[str]) -> None:
    """Check every target, where peft would pass over one that nothing is named by."""
    for target in targets:
        found = [
            (name, module)
            for name, module in unet.named_modules()
            if name == target or name.endswith(f".{target}")
        ]
        unable = next(
            (name for name, module in found if not isinstance(module, (nn.Linear, nn.Conv2d))), None
        )
        if not found:
            raise ConfigError(
                f"model.lora.targets: the UNet has no layer {target!r}; targets are ends of "
                "layers' names, such as to_q, to_k, to_v, to_out.0, ff.net.0.proj, ff.net.2, conv1"
            )
        if unable:
            raise ConfigError(
                f"model.lora.targets: {target!r} names {unable}, which is neither a linear layer "
                "nor a convolution; name the layers inside"
            )
