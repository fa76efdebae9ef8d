"""Which family a model is of, told by its model_index.json."""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

from fairhuman.common.errors import UserError
from fairhuman.common.hub import Named, locate, split_revision
from fairhuman.config import Model
from fairhuman.models.families.keys import Keys
from fairhuman.models.families.protocol import FamilyClass
from fairhuman.models.families.sizes import KNOWN
from fairhuman.models.formats.kinds import folder_kind

GROUP = "fairhuman.families"
"""Of the entry points by which other packages add families: PIPELINE = "module:Class"."""

_SDXL = "StableDiffusionXLPipeline"
_OURS = {
    "Flux2KleinPipeline": "fairhuman.models.families.flux2:Flux2Klein",
    "FluxPipeline": "fairhuman.models.families.flux:Flux",
    "StableDiffusion3Pipeline": "fairhuman.models.families.sd3:SD3",
    _SDXL: "fairhuman.models.families.sdxl.model:SDXL",
    "ZImagePipeline": "fairhuman.models.families.z_image:ZImage",
}


def pipelines() -> list[str]:
    """Return the pipelines of diffusers whose models can be trained."""
    return sorted({*_OURS, *_others()})


def family_class(settings: Model, keys: Keys | None = None, ask_hub: bool = True) -> FamilyClass:
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
    found = _OURS.get(name or _SDXL) or _others().get(name or "") or _OURS[_SDXL]
    module, _, attribute = found.partition(":")
    family: FamilyClass = getattr(import_module(module), attribute)
    return family


def check_model(settings: Model, keys: Keys | None = None, ask_hub: bool = True) -> FamilyClass:
    """Check the models that the section `model` names, before their weights are read.

    Args:
        settings: the section.
        keys: what to call its keys in messages; None: the config's.
        ask_hub: otherwise what is not on this machine is passed over.

    Returns:
        The class of their family, which loads them.

    Raises:
        ConfigError: one is not there, is of no family, or does not fit; names its key.
    """
    family = family_class(settings, keys, ask_hub)
    family.check(settings, keys, ask_hub)
    return family


def _pipeline(folder: Path) -> str | None:
    """Return the class that a folder's pipeline is of, where it tells one."""
    with suppress(UserError):  # what is wrong with it, the family's check says
        kind = folder_kind(folder)
        return kind.name if kind else None
    return None


def _known(name: str) -> str | None:
    """Return the pipeline of a published model that is not on this machine."""
    name, _ = split_revision(name)
    return KNOWN[name].pipeline if name in KNOWN else None


def _others() -> dict[str, str]:
    return {point.name: point.value for point in entry_points(group=GROUP)}
