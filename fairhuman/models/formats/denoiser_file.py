"""The transformer of a pipeline in diffusers' layout to one file with the names it was released by.

Its text encoders and its VAE are not trained: they are the base model's, whose files ComfyUI and
others load next to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from fairhuman.models.formats.modelspec import modelspec
from fairhuman.models.formats.original_names import Original
from fairhuman.models.formats.originals import ORIGINALS
from fairhuman.models.formats.pipeline_folder import check_tensors, on_meta, read_json
from fairhuman.models.formats.weights import open_weights, weights_in
from fairhuman.models.formats.writer import write_safetensors, written_aside

_PART = "transformer"


def original_of(folder: Path) -> Original | None:
    """Return the layout that a pipeline's transformer was released in; None: there is none.

    Raises:
        UserError: the transformer's config is not JSON.
    """
    path = folder / _PART / "config.json"
    if not (folder / "model_index.json").is_file() or not path.is_file():
        return None
    return ORIGINALS.get(str(read_json(path).get("_class_name")))


def write_denoiser(
    folder: Path,
    original: Original,
    out: Path,
    *,
    dtype: torch.dtype | None,
    fields: Mapping[str, str],
    allow_pickle: bool,
    force: bool,
) -> None:
    """Write the transformer of a pipeline as one file.

    Args:
        folder: the pipeline's.
        original: its layout, of `original_of`.
        out: the file to write.
        dtype: None keeps each tensor's own.
        fields: ModelSpec's keys that the user gives.
        allow_pickle: read weights also if torch.save wrote them.
        force: replace `out`.

    Raises:
        UserError: the transformer is not whole, or `out` is there.
        OutputError: it cannot be written.
    """
    import diffusers

    config_file = folder / _PART / "config.json"
    config = read_json(config_file)
    model = on_meta(getattr(diffusers, config["_class_name"]).from_config, config, config_file)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    path = weights_in(folder / _PART, allow_pickle=allow_pickle)
    with open_weights(path, allow_pickle=allow_pickle) as weights:
        check_tensors(wanted, weights.tensors, f"{path}", config_file)
        tensors = original.tensors(weights.tensors)
        architecture = original.architecture_of(config)
        metadata = modelspec(out.stem, architecture, v_prediction=None, fields=fields)
        with written_aside(out, force=force) as aside:
            write_safetensors(aside, tensors, {"format": "pt", **metadata}, dtype)
