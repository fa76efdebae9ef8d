"""A frozen base whose linear layers hold 8 or 4 bits per weight (QLoRA, arXiv 2305.14314).

bitsandbytes' kernels quantize and restore the weights. Its layers are not used: their backward
passes keep inputs that recomputation is to free, and the 8-bit one also quantizes activations.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fairhuman.common.errors import ConfigError
from fairhuman.models.blocks import transformer_blocks

Kind = Literal["int8", "nf4"]

BLOCK = {"int8": 256, "nf4": 64}
"""Weights that share a scale."""


class QuantizedLinear(nn.Linear):
    """A linear layer that is not trained, with a weight of few bits.

    It computes in the input's dtype, with the weight restored for as long as the operation takes,
    and passes gradients through to its input.

    Args:
        linear: whose weight and bias it takes over.
        kind: `int8`, levels of equal distance; `nf4`, sixteen levels for normal numbers.
        device: where the weight is quantized; it comes back to where it was.
    """

    values: Tensor
    scales: Tensor
    levels: Tensor

    def __init__(self, linear: nn.Linear, kind: Kind, device: torch.device) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.kind = kind
        self.dtype = linear.weight.dtype
        self.bias = linear.bias
        home = linear.weight.device
        parts = _quantize(linear.weight.detach().to(device), kind)
        for name, part in zip(("values", "scales", "levels"), parts, strict=True):
            # As whole numbers: .to(dtype) of the model is to leave float32 scales as they are.
            # Not in state_dict: nobody trains or saves them.
            kept = part if part.dtype == torch.uint8 else part.view(torch.int32)
            self.register_buffer(name, kept.to(home), persistent=False)

    @property
    def weight(self) -> Tensor:
        """The restored weight, [out, in], of the dtype that it was quantized from."""
        return self.restored(self.dtype)

    @weight.setter
    def weight(self, value: Tensor) -> None:
        raise AttributeError("a quantized weight is not trained")

    def restored(self, dtype: torch.dtype) -> Tensor:
        """Return the weight, [out, in], in a dtype."""
        from bitsandbytes.functional import QuantState, dequantize_4bit, dequantize_blockwise

        state = QuantState(
            self.scales.view(torch.float32),
            shape=torch.Size((self.out_features, self.in_features)),
            code=self.levels.view(torch.float32),
            blocksize=BLOCK[self.kind],
            quant_type=self.kind,
            dtype=dtype,
        )
        restore: Any = dequantize_4bit if self.kind == "nf4" else dequantize_blockwise
        weight: Tensor = restore(self.values, state)
        return weight

    def forward(self, x: Tensor) -> Tensor:
        """Return x W^T + b, [..., out]."""
        found: Tensor = _Product.apply(x, self)
        return found

    def extra_repr(self) -> str:
        """Tell the kind besides the sizes."""
        return f"{super().extra_repr()}, kind={self.kind}"


class _Product(torch.autograd.Function):
    """The layer's product; the backward pass restores the weight again instead of keeping it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        bias = None if layer.bias is None else layer.bias.to(x.dtype)
        return functional.linear(x, layer.restored(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.layer.restored(gradient.dtype), None


def quantize_blocks(model: Any, kind: Kind, device: torch.device | None = None) -> None:
    """Quantize the linear layers of a model's transformer blocks, one after another.

    What is outside of the blocks, such as embeddings and the last projection, is a small part of
    the model and stays as it is; so do convolutions and norms.

    Args:
        model: of diffusers; changed in place.
        kind: see `QuantizedLinear`.
        device: where weights are quantized; None: where they are.

    Raises:
        ConfigError: it has no such blocks.
    """
    found = False
    for part in [part for block in transformer_blocks(model) for part in block.modules()]:
        for name, child in part.named_children():
            if type(child) is nn.Linear:
                setattr(part, name, QuantizedLinear(child, kind, device or child.weight.device))
                found = True
    if not found:
        raise ConfigError(
            f"model.quantize = {kind!r}: the model has no transformer blocks with linear layers"
        )


def quantized_layers(model: nn.Module) -> list[QuantizedLinear]:
    """Return the quantized layers of a model."""
    return [part for part in model.modules() if isinstance(part, QuantizedLinear)]


def _quantize(weight: Tensor, kind: Kind) -> tuple[Tensor, Tensor, Tensor]:
    """Return the values in uint8, the blocks' scales and the levels in float32."""
    from bitsandbytes.functional import quantize_4bit, quantize_blockwise

    if kind == "nf4":
        values, state = quantize_4bit(
            weight, quant_type="nf4", blocksize=BLOCK[kind], compress_statistics=False
        )
    else:
        # bitsandbytes wants 256 in order; an odd number has 0 among them.
        levels = torch.linspace(-1, 1, 255, device=weight.device)
        levels = torch.cat([levels, levels[-1:]])
        values, state = quantize_blockwise(weight, code=levels, blocksize=BLOCK[kind])
    return values, state.absmax, state.code
