"""An SDXL pipeline in diffusers' layout to one file with the original names, and back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from fairhuman.common.errors import UserError
from fairhuman.models.formats.components import (
    Sources,
    text_2_to_diffusers,
    text_2_to_original,
    text_in_one_form,
    text_to_diffusers,
    text_to_original,
    unet_to_diffusers,
    unet_to_original,
    vae_in_new_names,
    vae_to_diffusers,
    vae_to_original,
)
from fairhuman.models.formats.modelspec import SDXL, modelspec
from fairhuman.models.formats.names import UNET_PREFIX
from fairhuman.models.formats.pipeline_folder import COMPONENTS, PipelineFolder
from fairhuman.models.formats.weights import Source, Weights, open_weights, weights_in
from fairhuman.models.formats.writer import write_safetensors, written_aside

_FLAG = Source((0,), torch.float32, lambda: torch.zeros(0))
_WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".msgpack", ".onnx", ".pt", ".ckpt")


def to_single_file(
    folder: Path,
    out: Path,
    *,
    dtype: torch.dtype | None = None,
    fields: Mapping[str, str] | None = None,
    allow_pickle: bool = False,
    force: bool = False,
) -> None:
    """Write a pipeline as one file; `dtype` None keeps each tensor's own.

    Raises:
        UserError: it is not a whole SDXL, or `out` is there.
        OutputError: it cannot be written.
    """
    layout = PipelineFolder.read(folder)
    with ExitStack() as stack:
        parts: dict[str, Sources] = {}
        for name in COMPONENTS:
            path = weights_in(folder / name, allow_pickle=allow_pickle)
            opened = open_weights(path, allow_pickle=allow_pickle)
            parts[name] = in_one_form(name, stack.enter_context(opened).tensors)
            layout.check(name, parts[name], path)
        tensors = {
            **unet_to_original(parts["unet"], layout.unet_names),
            **vae_to_original(parts["vae"], layout.vae_names),
            **text_to_original(parts["text_encoder"]),
            **text_2_to_original(parts["text_encoder_2"]),
        }
        # A single file has no scheduler: ComfyUI tells v-prediction by these two keys, and takes
        # a file without them for a model that predicts noise.
        if layout.v_prediction:
            tensors["v_pred"] = _FLAG
            if layout.zero_snr:
                tensors["ztsnr"] = _FLAG
        metadata = modelspec(
            out.stem,
            SDXL,
            resolution=layout.resolution,
            v_prediction=layout.v_prediction,
            fields=fields,
        )
        with written_aside(out, force=force) as aside:
            write_safetensors(aside, tensors, {"format": "pt", **metadata}, dtype)


def from_single_file(
    file: Path,
    config: Path,
    out: Path,
    *,
    dtype: torch.dtype | None = None,
    allow_pickle: bool = False,
    force: bool = False,
) -> None:
    """Write a single file as a pipeline in diffusers' layout.

    Args:
        file: an SDXL with the original names.
        config: a folder in diffusers' layout, whose configs and tokenizers are taken.
        out: the folder to write.
        dtype: None keeps each tensor's own.
        allow_pickle: read `file` also if torch.save wrote it.
        force: replace `out`.

    Raises:
        UserError: `file` is not an SDXL of that config, or `out` is there.
        OutputError: it cannot be written.
    """
    with (
        opened_parts(file, config, allow_pickle=allow_pickle) as (weights, parts),
        written_aside(out, force=force) as aside,
    ):
        _copy_configs(config, aside)
        _set_prediction(aside, weights)
        for name, part in parts.items():
            stem = "model" if name.startswith("text") else "diffusion_pytorch_model"
            write_safetensors(aside / name / f"{stem}.safetensors", part, {"format": "pt"}, dtype)


@contextmanager
def opened_parts(
    file: Path, config: Path, *, allow_pickle: bool = False
) -> Iterator[tuple[Weights, dict[str, dict[str, Source]]]]:
    """Open a single file: what it holds, and each component's tensors in diffusers' names.

    Args:
        file: an SDXL with the original names.
        config: a folder in diffusers' layout whose configs describe it.
        allow_pickle: read `file` also if torch.save wrote it.

    Raises:
        UserError: `file` is not an SDXL of that config, damaged, or pickled.
    """
    layout = PipelineFolder.read(config)
    with open_weights(file, allow_pickle=allow_pickle) as weights:
        if not any(name.startswith(UNET_PREFIX) for name in weights.tensors):
            raise UserError(f"{file}: holds no UNet under {UNET_PREFIX}; it is no SDXL checkpoint")
        parts: dict[str, dict[str, Source]] = {
            "unet": unet_to_diffusers(weights.tensors, layout.unet_names),
            "vae": vae_to_diffusers(weights.tensors, layout.vae_names),
            "text_encoder": text_to_diffusers(weights.tensors),
            "text_encoder_2": text_2_to_diffusers(weights.tensors),
        }
        for name, part in parts.items():
            layout.check(name, part, file)
        yield weights, parts


def prediction(weights: Weights) -> dict[str, Any]:
    """Return what a single file says that it predicts, as a scheduler's settings."""
    said = weights.metadata.get("modelspec.prediction_type")
    if "v_pred" not in weights.tensors and said not in ("v", "epsilon"):
        return {}
    by_v = "v_pred" in weights.tensors or said == "v"
    settings: dict[str, Any] = {"prediction_type": "v_prediction" if by_v else "epsilon"}
    if "ztsnr" in weights.tensors:
        settings["rescale_betas_zero_snr"] = True
    return settings


def in_one_form(component: str, tensors: Sources) -> dict[str, Source]:
    """Return a component's tensors in the names of the hub's SDXL."""
    if component == "vae":
        return vae_in_new_names(tensors)
    return text_in_one_form(tensors) if component.startswith("text") else dict(tensors)


def _copy_configs(config: Path, folder: Path) -> None:
    """Copy all of a pipeline but its weights, and its pictures and pages at the top."""
    for path in sorted(config.rglob("*")):
        inner = path.relative_to(config)
        top = len(inner.parts) == 1 and inner.name != "model_index.json"
        hidden = any(part.startswith(".") for part in inner.parts)
        if path.is_file() and not path.name.endswith(_WEIGHTS) and not top and not hidden:
            (folder / inner.parent).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / inner)


def _set_prediction(folder: Path, weights: Weights) -> None:
    """Write into the scheduler's config what the file says that it predicts."""
    said = prediction(weights)
    if not said:
        return
    path = folder / "scheduler" / "scheduler_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(settings | said, indent=2) + "\n", encoding="utf-8")
