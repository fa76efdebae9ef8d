"""A model without weights, set up for training like a real one: what sizes are counted on."""

from __future__ import annotations

from typing import NamedTuple

import torch

from fairhuman.config import Model
from fairhuman.models.families.protocol import Family
from fairhuman.models.families.registry import family_class
from fairhuman.models.method import Method, make_method


class Empty(NamedTuple):
    """A model and what is trained of it, on the meta device."""

    family: Family
    method: Method
    described_by: str
    """Whose configs it is made from."""


def empty_model(settings: Model, dtype: torch.dtype) -> Empty:
    """Make the model that the section `model` names from its configs alone.

    Args:
        settings: of a ControlNet or adapter to continue from, the sizes of a new one are taken.
        dtype: of the denoiser and the text encoders.

    Raises:
        ConfigError: a folder that it names is not a whole model's.
    """
    family, described_by = family_class(settings, ask_hub=False).empty(settings, dtype)
    with torch.device("meta"):
        method = make_method(family, settings.model_copy(update={"control": None}), seed=0)
    method.module.train()
    return Empty(family, method, described_by)
