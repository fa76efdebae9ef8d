"""Which family a model is of, told by its model_index.json."""

from __future__ import annotations

import json
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch

from fairhuman.common.hub import Named, locate
from fairhuman.config import Config, Model
from fairhuman.models.families.keys import Keys
from fairhuman.models.families.protocol import Family
from fairhuman.models.families.sizes import KNOWN

GROUP = "fairhuman.families"
"""Of the entry points by which other packages add families: PIPELINE = "module:Class"."""

_SDXL = "fairhuman.models.families.sdxl.model:SDXL"
_OURS = {
    "Flux2KleinPipeline": "fairhuman.models.families.flux2:Flux2Klein",
    "FluxPipeline": "fairhuman.models.families.flux:Flux",
    "StableDiffusion3Pipeline": "fairhuman.models.families.sd3:SD3",
    "ZImagePipeline": "fairhuman.models.families.z_image:ZImage",
}


def pipelines() -> list[str]:
    """Return the pipelines of diffusers whose models can be trained."""
    return sorted({"StableDiffusionXLPipeline", *_OURS, *_others()})


def family_class(settings: Model, keys: Keys | None = None, ask_hub: bool = True) -> type[Any]:
    """Return the class of the family that the model of the section `model` is of.

    What is of none of them is SDXL's to refuse, as is a single file.

    Args:
        settings: the section.
        keys: what to call its keys in messages; None: the config's.
        ask_hub: otherwise a model that is not on this machine, and not known by its name, counts
            as an SDXL.

    Raises:
        ConfigError: there is no such model.
    """
    keys = keys or Keys()
    place = locate(Named(keys.pretrained, settings.pretrained), ask_hub)
    name = _pipeline(place.path) if place else _known(settings.pretrained)
    found = _OURS.get(name or "") or _others().get(name or "") or _SDXL
    module, _, attribute = found.partition(":")
    family: type[Any] = getattr(import_module(module), attribute)
    return family


def check_model(settings: Model, keys: Keys | None = None, ask_hub: bool = True) -> None:
    """Check the models that the section `model` names, before their weights are read.

    Args:
        settings: the section.
        keys: what to call its keys in messages; None: the config's.
        ask_hub: otherwise what is not on this machine is passed over.

    Raises:
        ConfigError: one is not there, is of no family, or does not fit; names its key.
    """
    family_class(settings, keys, ask_hub).check(settings, keys, ask_hub)


def check_training(config: Config) -> None:
    """Check that the model's family can be trained as the config says.

    Raises:
        ConfigError: it has no such setting; names the key.
    """
    family_class(config.model).check_training(config)


def load_model(
    settings: Model, dtype: torch.dtype, device: torch.device, keys: Keys | None = None
) -> Family:
    """Load the model that the section `model` names; see `SDXL.load`."""
    loaded: Family = family_class(settings, keys).load(settings, dtype, device, keys)
    return loaded


def _pipeline(folder: Path) -> str | None:
    """Return the class that a folder's pipeline is of, where it tells one."""
    try:
        tree = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    name = tree.get("_class_name") if isinstance(tree, dict) else None
    return name if isinstance(name, str) else None


def _known(name: str) -> str | None:
    """Return the pipeline of a published model that is not on this machine."""
    return KNOWN[name].pipeline if name in KNOWN else None


def _others() -> dict[str, str]:
    return {point.name: point.value for point in entry_points(group=GROUP)}
