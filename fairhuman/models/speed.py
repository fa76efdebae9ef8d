"""How the trained module computes, whatever it computes: attention, compilation, memory layout.

None of it changes a result by more than rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from fairhuman.common.error_text import first_line
from fairhuman.common.errors import ConfigError
from fairhuman.common.extras import install_line
from fairhuman.config import Model
from fairhuman.models.attention import simplify_attention
from fairhuman.models.blocks import transformer_blocks


def check_speed(settings: Model, dtype: torch.dtype, device: torch.device) -> None:
    """Check that this installation can what the section `model` asks for, before it is loaded.

    Raises:
        ConfigError: xformers is missing, or has no kernel for the device and precision.
    """
    if settings.attention == "xformers":
        _check_xformers(dtype, device)


def set_up(module: nn.Module, settings: Model) -> None:
    """Have a method's module compute as the section `model` says; before DeepSpeed takes it."""
    for model in _diffusers_models(module):
        if settings.attention == "xformers":
            model.enable_xformers_memory_efficient_attention()
        else:
            simplify_attention(model)
        if settings.channels_last:
            _channels_last(model)
        if settings.compile:
            _compile(model)


def _diffusers_models(module: nn.Module) -> Iterator[Any]:
    from diffusers import ModelMixin

    return (part for part in module.modules() if isinstance(part, ModelMixin))


def _check_xformers(dtype: torch.dtype, device: torch.device) -> None:
    if find_spec("xformers") is None:
        raise ConfigError(
            f"model.attention = 'xformers': xformers is not installed: {install_line('xformers')}, "
            "or use sdpa"
        )
    try:
        from xformers.ops import memory_efficient_attention

        states = torch.zeros(1, 8, 1, 64, dtype=dtype, device=device, requires_grad=True)
        memory_efficient_attention(states, states, states).sum().backward()
    except (ImportError, OSError, NotImplementedError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"model.attention = 'xformers': xformers cannot compute {str(dtype)[6:]} attention on "
            f"this {device.type} ({first_line(error)}); use sdpa"
        ) from error


def _channels_last(model: nn.Module) -> None:
    for part in model.modules():
        # Both copy to NCHW in diffusers, which would last up to the UNet's end.
        if type(part).__name__ in ("ResnetBlock2D", "Transformer2DModel"):
            part.register_forward_hook(_output_channels_last)
    for weight in model.parameters():
        # ZeRO flattens the trained ones, whatever their layout is.
        if weight.ndim == 4 and not weight.requires_grad:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)


def _output_channels_last(block: nn.Module, inputs: Any, output: Any) -> Any:
    if isinstance(output, tuple):
        return tuple(_output_channels_last(block, inputs, part) for part in output)
    return output.contiguous(memory_format=torch.channels_last)


def _compile(model: Any) -> None:
    """Compile the transformer blocks, one for all of the same kind.

    Not the whole model, which takes minutes per image size and is no faster for it.
    """
    import torch._functorch.config as functorch

    # Otherwise a compiled backward pass overwrites what the next objective's pass needs.
    functorch.donated_buffer = False
    for block in transformer_blocks(model):
        block.compile()
