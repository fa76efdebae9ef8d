"""An SDXL without weights: what sizes are counted on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fairhuman.common.errors import ConfigError, UserError
from fairhuman.common.hub import split_revision
from fairhuman.config import Model
from fairhuman.models.formats.base import BASE
from fairhuman.models.formats.pipeline_folder import PipelineFolder, read_json


def empty_pipeline(settings: Model, dtype: torch.dtype) -> tuple[Any, str]:
    """Make the pipeline that the section `model` names from its configs alone.

    A hub name whose configs are not on this machine is taken for an SDXL of SDXL base's sizes;
    the hub is not asked. So is a VAE.

    Args:
        settings: the section.
        dtype: of the UNet and the text encoders.

    Returns:
        The pipeline, on the meta device, and whose configs it is made from.

    Raises:
        ConfigError: a folder that it names is not a whole SDXL's.
    """
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    try:
        layout = _layout(settings)
        parts: dict[str, Any] = {name: layout.empty(name) for name in _DTYPED}
        vae = _vae(settings, layout).empty("vae")
    except UserError as error:
        raise ConfigError(f"model: {error}") from error
    pipeline = StableDiffusionXLPipeline(
        **{name: part.to(dtype) for name, part in parts.items()},
        vae=vae,
        tokenizer=None,
        tokenizer_2=None,
        scheduler=EulerDiscreteScheduler.from_config(layout.scheduler),
    )
    return pipeline, str(layout.folder)


_DTYPED = ("unet", "text_encoder", "text_encoder_2")


def _layout(settings: Model) -> PipelineFolder:
    single = settings.pretrained.endswith(".safetensors")
    name = (settings.config or BASE) if single else settings.pretrained
    folder = _on_this_machine(name)
    return PipelineFolder.read(folder) if folder else PipelineFolder.base()


def _vae(settings: Model, layout: PipelineFolder) -> PipelineFolder:
    folder = _on_this_machine(settings.vae) if settings.vae else None
    return replace(layout, vae=read_json(folder / "config.json")) if folder else layout


def _on_this_machine(name: str) -> Path | None:
    """Return a model's folder, or that of a hub name in the hub's cache; None: it is elsewhere."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        repository, revision = split_revision(name)
        return Path(
            snapshot_download(
                repository, revision=revision, local_files_only=True, allow_patterns=["*.json"]
            )
        )
    except HFValidationError:
        raise UserError(f"{name!r}: is no folder here, and cannot be a hub name") from None
    except LocalEntryNotFoundError:
        return None
