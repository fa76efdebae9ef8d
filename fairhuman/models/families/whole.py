"""A pipeline in diffusers' layout by its configs and headers: is it whole, how large is it?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from fairhuman.common.error_text import first_line
from fairhuman.common.errors import ConfigError, UserError
from fairhuman.common.hub import Named, Place
from fairhuman.models.families.sizes import Layout, Part
from fairhuman.models.formats.pipeline_folder import read_json
from fairhuman.models.formats.weights import open_weights, weights_in

# What a config of another model, or a damaged one, makes diffusers and transformers raise.
_UNFIT = (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError)


def check_whole(named: Named, place: Place, pipeline: str) -> None:
    """Check that a folder has all parts of a pipeline, with the tensors of their configs.

    Args:
        named: the key that gives the folder.
        place: where it is; of a model that is not all here, the configs alone are checked.
        pipeline: diffusers' class.

    Raises:
        ConfigError: a part is missing, damaged, or another's; names the key.
    """
    try:
        for name, part in read_layout(place.path, pipeline).parts.items():
            folder = place.path / name
            if is_model(part):
                model = empty_part(part, folder / "config.json")
                if place.whole:
                    # transformers changes names between versions, and loads by all of them.
                    _check_header(folder, model, all_named=part.library == "diffusers")
        if place.whole:
            for name in _named(place.path, pipeline):
                if name.startswith("tokenizer") and not any((place.path / name).glob("*.json")):
                    raise UserError(f"{place.path / name}: is missing")
    except ConfigError:
        raise
    except UserError as error:
        named.refuse(str(error).removeprefix(f"{named.value}: "))


def read_layout(folder: Path, pipeline: str) -> Layout:
    """Read the configs of a pipeline in diffusers' layout.

    Args:
        folder: the pipeline's.
        pipeline: diffusers' class.

    Raises:
        UserError: one is missing, or not JSON.
    """
    parts = {}
    for name, (library, kind) in _named(folder, pipeline).items():
        if name.startswith("tokenizer"):
            continue
        file = "scheduler_config.json" if name == "scheduler" else "config.json"
        parts[name] = Part(library, kind, read_json(folder / name / file))
    return Layout(pipeline, parts)


def is_model(part: Part) -> bool:
    """Return whether a part has weights."""
    return not part.kind.endswith("Scheduler")


def empty_part(part: Part, place: object) -> nn.Module:
    """Return a part on the meta device: its shapes without their memory.

    Args:
        part: with its config.
        place: of the config, for messages.

    Raises:
        UserError: the config describes no such model.
    """
    made = made_by(part, place)
    try:
        with torch.device("meta"):
            if part.library == "diffusers":
                model: nn.Module = made.from_config(part.config)
            else:
                model = made(made.config_class.from_dict(part.config))
    except _UNFIT as error:
        raise UserError(f"{place}: describes no {part.kind}: {first_line(error)}") from None
    return model


def made_by(part: Part, place: object) -> Any:
    """Return a part's class.

    Raises:
        UserError: no installed library has it.
    """
    import diffusers
    import transformers

    library = {"diffusers": diffusers, "transformers": transformers}.get(part.library)
    made = getattr(library, part.kind, None)
    if made is None:
        raise UserError(f"{place}: is of {part.library}.{part.kind}, which is not installed")
    return made


def _named(folder: Path, pipeline: str) -> dict[str, tuple[str, str]]:
    """Return a pipeline's parts by their names: the library and the class of each."""
    import diffusers

    index = read_json(folder / "model_index.json")
    kind = getattr(diffusers, pipeline)
    needed, _ = kind._get_signature_keys(kind)
    found: dict[str, tuple[str, str]] = {}
    for name in sorted(set(needed) - set(kind._optional_components)):
        entry = index.get(name)
        if not (isinstance(entry, list) and len(entry) == 2 and all(map(_is_word, entry))):
            raise UserError(f"{folder / 'model_index.json'}: names no {name}")
        found[name] = (entry[0], entry[1])
    return found


def _check_header(folder: Path, model: nn.Module, all_named: bool) -> None:
    path = weights_in(folder)
    with open_weights(path) as weights:
        parameters = {name for name, _ in model.named_parameters()}  # buffers may be left out
        for name, tensor in model.state_dict().items():
            source = weights.tensors.get(name)
            if source is None:
                if all_named and name in parameters:
                    raise UserError(f"{path}: {name} is missing")
                continue
            if source.shape != tuple(tensor.shape):
                raise UserError(
                    f"{path}: {name} is of shape {source.shape}, and by its config.json it is "
                    f"{tuple(tensor.shape)}"
                )


def _is_word(value: object) -> bool:
    return isinstance(value, str) and bool(value)
