"""Is a pipeline in diffusers' layout whole? Configs and headers are read, no weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from fairhuman.common.error_text import first_line
from fairhuman.common.errors import ConfigError, UserError
from fairhuman.common.hub import Named, Place
from fairhuman.models.formats.pipeline_folder import read_json
from fairhuman.models.formats.weights import open_weights, weights_in

# What a config of another model, or a damaged one, makes diffusers and transformers raise.
_UNFIT = (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError)


def check_whole(named: Named, place: Place, pipeline: str) -> None:
    """Check that a folder has all parts of a pipeline, each with the tensors of its config.

    Args:
        named: the key that gives the folder.
        place: where it is; of a model that is not all here, the configs alone are checked.
        pipeline: diffusers' class.

    Raises:
        ConfigError: a part is missing, damaged, or another's; names the key.
    """
    try:
        for name, (library, kind) in parts(place.path, pipeline).items():
            folder = place.path / name
            if library == "diffusers" and "Scheduler" in kind:
                read_json(folder / "scheduler_config.json")
            elif "Tokenizer" in kind:
                if place.whole and not any(folder.glob("*.json")):
                    raise UserError(f"{folder}: is missing")
            else:
                model = empty_part(folder, library, kind)
                if place.whole:
                    _check_header(folder, model)
    except ConfigError:
        raise
    except UserError as error:
        named.refuse(str(error).removeprefix(f"{named.value}: "))


def parts(folder: Path, pipeline: str) -> dict[str, tuple[str, str]]:
    """Return a pipeline's parts by their names: the library and the class of each.

    Raises:
        UserError: model_index.json lacks one that the pipeline needs.
    """
    import diffusers

    index = read_json(folder / "model_index.json")
    needed, _ = getattr(diffusers, pipeline)._get_signature_keys(getattr(diffusers, pipeline))
    optional = set(getattr(diffusers, pipeline)._optional_components)
    found: dict[str, tuple[str, str]] = {}
    for name in sorted(set(needed) - optional):
        entry = index.get(name)
        if not (isinstance(entry, list) and len(entry) == 2 and all(map(_is_word, entry))):
            raise UserError(f"{folder / 'model_index.json'}: names no {name}")
        found[name] = (entry[0], entry[1])
    return found


def empty_part(folder: Path, library: str, kind: str) -> nn.Module:
    """Return a part on the meta device: its shapes without their memory.

    Args:
        folder: with its config.json.
        library: `diffusers` or `transformers`.
        kind: the class.

    Raises:
        UserError: the config describes no such model.
    """
    import diffusers
    import transformers

    config = read_json(folder / "config.json")
    made = getattr({"diffusers": diffusers, "transformers": transformers}.get(library), kind, None)
    if made is None:
        raise UserError(f"{folder}: model_index.json says {library}.{kind}, which is not installed")
    try:
        with torch.device("meta"):
            if library == "diffusers":
                model: Any = made.from_config(config)
            else:
                model = made(made.config_class.from_dict(config))
    except _UNFIT as error:
        raise UserError(
            f"{folder / 'config.json'}: describes no {kind}: {first_line(error)}"
        ) from None
    found: nn.Module = model
    return found


def _check_header(folder: Path, model: nn.Module) -> None:
    path = weights_in(folder)
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    with open_weights(path) as weights:
        for name, tensor in model.state_dict().items():
            source = weights.tensors.get(name)
            if source is None:
                if name in tied:
                    continue
                raise UserError(f"{path}: {name} is missing")
            if source.shape != tuple(tensor.shape):
                raise UserError(
                    f"{path}: {name} is of shape {source.shape}, and by its config.json it is "
                    f"{tuple(tensor.shape)}"
                )


def _is_word(value: object) -> bool:
    return isinstance(value, str) and bool(value)
