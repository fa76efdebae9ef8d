"""The parts of a pipeline of diffusers."""

from __future__ import annotations

from typing import Any

from torch import nn


def models_of(pipeline: Any) -> dict[str, nn.Module]:
    """Return a pipeline's models by their names: not its tokenizers and scheduler."""
    parts = pipeline.components
    return {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
