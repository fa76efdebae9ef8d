"""The transformer blocks of a model of diffusers."""

from __future__ import annotations

from typing import Any

from torch import nn


def transformer_blocks(model: Any) -> list[nn.Module]:
    """Return a model's transformer blocks.

    That is what diffusers compiles one for all of, or else does not split over devices; a
    ControlNet names none, and has the UNet's.
    """
    names = {"BasicTransformerBlock", *(model._repeated_blocks or model._no_split_modules or ())}
    return [part for part in model.modules() if type(part).__name__ in names]
