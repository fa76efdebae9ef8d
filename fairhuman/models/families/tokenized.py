"""A model that can count the tokens of captions, and has no weights."""

from __future__ import annotations

import torch

from fairhuman.common.error_text import first_line
from fairhuman.common.hub import Named, locate
from fairhuman.config import Model
from fairhuman.models.families.keys import Keys
from fairhuman.models.families.protocol import Family
from fairhuman.models.families.registry import family_class
from fairhuman.models.families.unusable import UNUSABLE


def tokenized(settings: Model, keys: Keys | None = None) -> Family:
    """Make the model that the section `model` names from its configs and tokenizers alone.

    Args:
        settings: the section; a folder in diffusers' layout, or a name on the hub.
        keys: what to call its keys in messages; None: the config's.

    Raises:
        ConfigError: there is no such model, or it has no tokenizers.
    """
    from transformers import AutoTokenizer

    keys = keys or Keys()
    named = Named(keys.pretrained, settings.pretrained)
    place = locate(named)
    assert place, "the hub was asked"
    kind = family_class(settings, keys)
    names = kind.tokenizers
    if missing := next((name for name in names if not (place.path / name).is_dir()), None):
        named.refuse(f"has no folder {missing}: give a {kind.name} in diffusers' layout")
    family, _ = kind.empty(settings, torch.bfloat16)
    for name in names:
        try:
            read = AutoTokenizer.from_pretrained(place.path / name, local_files_only=True)
        except UNUSABLE as error:
            named.refuse(f"its {name} cannot be read: {first_line(error)}")
        setattr(family.pipeline, name, read)
    return family
