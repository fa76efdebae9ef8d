"""Gradient checkpointing: blocks whose activations every backward pass recomputes."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute_blocks(model: Any) -> None:
    """Have a model of diffusers recompute its blocks' activations in every backward pass.

    Without what diffusers' own way adds on the host, and without another result: the state of
    random numbers, which only dropout needs, and the comparison of shapes with those of before.
    """
    drops = any(isinstance(part, nn.Dropout) and part.p > 0 for part in model.modules())

    def block(module: nn.Module, *inputs: Any) -> Any:
        return checkpoint(
            module.__call__,
            *inputs,
            use_reentrant=False,
            preserve_rng_state=drops,
            determinism_check="none",
        )

    model.enable_gradient_checkpointing(block)
