"""Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685) of SDXL's UNet and text encoders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fairhuman.common.errors import ConfigError
from fairhuman.config import Lora
from fairhuman.models.adapters import ADAPTER, adapt
from fairhuman.models.families.protocol import Family
from fairhuman.models.families.sdxl.text import CaptionedUNet, checkpoint_blocks
from fairhuman.models.lora_start import load_start

_TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")


class LoRA:
    """Trains W + (alpha / rank) B A in place of each target's weight W, which stays as it is.

    That is kind=lora; see `adapters` for the others.

    Args:
        family: its denoiser, and SDXL's text encoders if they are asked for, get the adapters, in
            its own precision.
        settings: kind, rank, alpha and targets.
        seed: of what is random in new adapters, such as A, normal with standard deviation 1 / rank.
        checkpointing: recompute adapted text encoders' activations in every backward pass.

    Raises:
        ConfigError: the UNet has no layer that a target names, or one that cannot be adapted; or
            the LoRA to start from has other layers.
    """

    def __init__(self, family: Family, settings: Lora, seed: int, checkpointing: bool) -> None:
        unet: Any = family.denoiser
        targets = settings.targets or family.lora_targets
        _check_targets(unet, targets)
        unet.requires_grad_(False)
        self.adapted: dict[str, Any] = {family.part: unet}
        """By their names in the pipeline."""
        self.module: nn.Module = unet
        self.pipeline = family.pipeline
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            adapt(unet, targets, settings)
            if settings.text_encoders:
                first, second = self.pipeline.text_encoder, self.pipeline.text_encoder_2
                self.adapted |= {"text_encoder": first, "text_encoder_2": second}
                # Nothing reads the first one's last block: no gradient would reach it.
                adapt(first, _text_targets(first.config.num_hidden_layers - 1), settings)
                adapt(second, _text_targets(second.config.num_hidden_layers), settings)
                if checkpointing:
                    checkpoint_blocks(first)
                    checkpoint_blocks(second)
                self.module = CaptionedUNet(unet, first, second)
        if settings.weights:
            load_start(self.adapted, settings)

    def write(self, folder: Path) -> None:
        """Write pytorch_lora_weights.safetensors, with ranks and alphas in its header."""
        from peft.utils import get_peft_model_state_dict

        parts: dict[str, Any] = {}
        for name, model in self.adapted.items():
            layers = get_peft_model_state_dict(
                model, adapter_name=ADAPTER, save_embedding_layers=False
            )
            if name.startswith("text_encoder"):
                layers = {_text_name(layer): tensor for layer, tensor in layers.items()}
            parts[f"{name}_lora_layers"] = layers
            parts[f"{name}_lora_adapter_metadata"] = model.peft_config[ADAPTER].to_dict()
        type(self.pipeline).save_lora_weights(folder, **parts, safe_serialization=True)


def _text_targets(blocks: int) -> list[str]:
    return [f"layers.{i}.self_attn.{name}" for i in range(blocks) for name in _TEXT_TARGETS]


def _text_name(layer: str) -> str:
    """Return the name that all tools know; transformers 5.6 took text_model. out of some."""
    return layer if layer.startswith("text_model.") else f"text_model.{layer}"


def _check_targets(unet: nn.Module, targets: Sequence[str]) -> None:
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
                f"model.lora.targets: the model has no layer {target!r}; targets are ends of "
                "layers' names, such as to_q, to_k, to_v, to_out.0, ff.net.0.proj, ff.net.2, conv1"
            )
        if unable:
            raise ConfigError(
                f"model.lora.targets: {target!r} names {unable}, which is neither a linear layer "
                "nor a convolution; name the layers inside"
            )
