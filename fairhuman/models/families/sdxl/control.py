"""ControlNet (Zhang et al. 2023, arXiv 2302.05543) and T2I-Adapter (Mou et al. 2023, 2302.08453).

Both add residuals to a frozen UNet, computed from a control image: trained is what computes them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fairhuman.common.error_text import first_line
from fairhuman.common.errors import ConfigError
from fairhuman.common.hub import Named
from fairhuman.models.families.sdxl.check import check_control
from fairhuman.models.families.sdxl.model import SDXL
from fairhuman.models.families.unusable import UNUSABLE
from fairhuman.models.recompute import recompute_blocks

_BLOCKS = 3
"""Of the UNet's encoder: what a full_adapter_xl adapter is made for."""


class ControlNetUNet(nn.Module):
    """A UNet under a ControlNet, called as a UNet with `control`, [B, 3, H, W] in [0, 1]."""

    def __init__(self, unet: nn.Module, control: nn.Module) -> None:
        super().__init__()
        self.unet = unet
        self.control = control

    def forward(self, noisy: Tensor, steps: Tensor, *, control: Tensor, **conditions: Any) -> Any:
        """Return what the UNet returns."""
        given = {name: conditions[name] for name in ("encoder_hidden_states", "added_cond_kwargs")}
        down, middle = self.control(
            noisy, steps, controlnet_cond=control, return_dict=False, **given
        )
        return self.unet(
            noisy,
            steps,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
            **conditions,
        )


class AdapterUNet(nn.Module):
    """A UNet under a T2I-Adapter, called as a UNet with `control`, [B, 3, H, W] in [0, 1]."""

    def __init__(self, unet: nn.Module, control: nn.Module) -> None:
        super().__init__()
        self.unet = unet
        self.control = control

    def forward(self, noisy: Tensor, steps: Tensor, *, control: Tensor, **conditions: Any) -> Any:
        """Return what the UNet returns."""
        features = [feature.to(noisy.dtype) for feature in self.control(control)]
        return self.unet(noisy, steps, down_intrablock_additional_residuals=features, **conditions)


class ControlNet:
    """Trains a ControlNet.

    Args:
        sdxl: its UNet is frozen.
        pretrained: a folder or a hub name to continue from; None starts with a copy of the UNet's
            encoder whose residuals are 0.
        seed: of what is initialised at random.
        checkpointing: recompute its activations in every backward pass.

    Raises:
        ConfigError: there is no such ControlNet, or not of such a UNet.
    """

    def __init__(self, sdxl: SDXL, pretrained: str | None, seed: int, checkpointing: bool) -> None:
        unet: Any = sdxl.denoiser
        if pretrained:
            self.control = load_controlnet(pretrained, unet)
        else:
            from diffusers import ControlNetModel

            with torch.random.fork_rng():
                torch.manual_seed(seed)
                self.control = ControlNetModel.from_unet(unet)
        self.control.to(unet.device, unet.dtype).requires_grad_(True)
        if checkpointing:
            recompute_blocks(self.control)
        unet.requires_grad_(False)
        self.module: nn.Module = ControlNetUNet(unet, self.control)
        self.pipeline = with_controlnet(sdxl.pipeline, self.control)

    def write(self, folder: Path) -> None:
        """Write the ControlNet, in diffusers' layout."""
        self.control.save_pretrained(folder, safe_serialization=True)


class T2IAdapter:
    """Trains a T2I-Adapter: far smaller than a ControlNet, and evaluated once per picture.

    Args:
        sdxl: its UNet is frozen.
        pretrained: a folder or a hub name to continue from; None starts at random.
        seed: of what is initialised at random.

    Raises:
        ConfigError: there is no such adapter, or not for such a UNet.
    """

    def __init__(self, sdxl: SDXL, pretrained: str | None, seed: int) -> None:
        unet: Any = sdxl.denoiser
        if pretrained:
            self.control = load_adapter(pretrained, unet)
        else:
            from diffusers import T2IAdapter as Adapter

            with torch.random.fork_rng():
                torch.manual_seed(seed)
                self.control = Adapter(
                    in_channels=3,
                    channels=_adapter_channels(unet),
                    num_res_blocks=2,
                    downscale_factor=2 * sdxl.cell,
                    adapter_type="full_adapter_xl",
                )
        self.control.to(unet.device, unet.dtype).requires_grad_(True)
        unet.requires_grad_(False)
        self.module: nn.Module = AdapterUNet(unet, self.control)
        self.pipeline = with_adapter(sdxl.pipeline, self.control)

    def write(self, folder: Path) -> None:
        """Write the adapter, in diffusers' layout."""
        self.control.save_pretrained(folder, safe_serialization=True)


def load_controlnet(name: str, unet: Any, key: str = "model.control") -> Any:
    """Load a ControlNet of such a UNet from a folder or the hub, in the UNet's precision.

    Args:
        name: the folder or hub name.
        unet: whose residuals it is to write.
        key: what to call the name in messages.

    Raises:
        ConfigError: it cannot be loaded, or is another model's.
    """
    from diffusers import ControlNetModel

    control: Any = _load(ControlNetModel, Named(key, name), unet)
    for size in ("block_out_channels", "cross_attention_dim", "addition_embed_type"):
        theirs, ours = control.config[size], unet.config[size]
        if _plain(theirs) != _plain(ours):
            raise ConfigError(
                f"{Named(key, name)}: is a ControlNet of another model: its {size} is "
                f"{theirs}, the UNet's {ours}"
            )
    return control


def load_adapter(name: str, unet: Any, key: str = "model.control") -> Any:
    """Load a T2I-Adapter for such a UNet from a folder or the hub, in the UNet's precision.

    Args:
        name: the folder or hub name.
        unet: whose features it is to write.
        key: what to call the name in messages.

    Raises:
        ConfigError: it cannot be loaded, or is another model's.
    """
    from diffusers import T2IAdapter as Adapter

    adapter: Any = _load(Adapter, Named(key, name), unet)
    theirs, ours = adapter.config["channels"], _adapter_channels(unet)
    if adapter.config["adapter_type"] != "full_adapter_xl" or _plain(theirs) != ours:
        raise ConfigError(
            f"{Named(key, name)}: is a {adapter.config['adapter_type']} for channels "
            f"{_plain(theirs)}; this UNet needs a full_adapter_xl for {ours}"
        )
    return adapter


def with_controlnet(pipeline: Any, control: Any) -> Any:
    """Return a pipeline of the same parts that takes a control image for a ControlNet."""
    from diffusers import StableDiffusionXLControlNetPipeline

    return _extended(StableDiffusionXLControlNetPipeline, pipeline, controlnet=control)


def with_adapter(pipeline: Any, adapter: Any) -> Any:
    """Return a pipeline of the same parts that takes a control image for a T2I-Adapter."""
    from diffusers import StableDiffusionXLAdapterPipeline

    return _extended(StableDiffusionXLAdapterPipeline, pipeline, adapter=adapter)


def _extended(kind: Any, pipeline: Any, **part: Any) -> Any:
    # Not `from_pipe`, which casts the parts that both pipelines share.
    extended = kind(
        **pipeline.components,
        **part,
        force_zeros_for_empty_prompt=pipeline.config.force_zeros_for_empty_prompt,
    )
    extended.set_progress_bar_config(disable=True)
    return extended


def _load(kind: Any, named: Named, unet: Any) -> Any:
    # diffusers itself loads any model's folder as any class, with what fits.
    place = check_control(named, kind.__name__)
    assert place, "the hub was asked"
    try:
        loaded = kind.from_pretrained(
            place.source,
            torch_dtype=unet.dtype,
            use_safetensors=True,
            **place.options,
        )
    except UNUSABLE as error:
        named.refuse(f"cannot be loaded as a {kind.__name__}: {first_line(error)}")
    return loaded.to(unet.device)


def _adapter_channels(unet: Any) -> list[int]:
    channels = list(unet.config.block_out_channels)
    if len(channels) != _BLOCKS or unet.config.down_block_types[0] != "DownBlock2D":
        raise ConfigError(
            "model.method = 't2i_adapter': adapters are for SDXL's three blocks, the first without "
            f"attention; this UNet has {list(unet.config.down_block_types)}"
        )
    return [*channels, channels[-1]]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value
