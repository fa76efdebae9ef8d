"""What the configs in a diffusers folder say of an SDXL: names, tensors, sizes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fairhuman.common.error_text import first_line
from fairhuman.common.errors import UserError
from fairhuman.common.hub import Named, locate
from fairhuman.models.formats import base
from fairhuman.models.formats.components import Sources, text_name
from fairhuman.models.formats.names import Names, unet_names, vae_names

COMPONENTS = ("unet", "vae", "text_encoder", "text_encoder_2")

_ADAPTERS = {"ControlNetModel": "ControlNet", "T2IAdapter": "T2I-Adapter"}


@dataclass(frozen=True)
class PipelineFolder:
    """An SDXL without its weights."""

    folder: Path
    unet: dict[str, Any]
    vae: dict[str, Any]
    text_encoder: dict[str, Any]
    text_encoder_2: dict[str, Any]
    scheduler: dict[str, Any]

    @classmethod
    def base(cls) -> PipelineFolder:
        """Return SDXL base's, which needs no folder."""
        return cls(
            Path(base.BASE),
            base.UNET,
            base.VAE,
            base.TEXT_ENCODER,
            base.TEXT_ENCODER_2,
            base.SCHEDULER,
        )

    @classmethod
    def read(cls, folder: Path, vae: Path | None = None) -> PipelineFolder:
        """Read the configs of a pipeline in diffusers' layout.

        Args:
            folder: the pipeline's.
            vae: of another VAE, which takes the place of its own.

        Raises:
            UserError: it is not one, or not an SDXL.
        """
        own = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
        kind = _ADAPTERS.get(str(own.get("_class_name")))
        if kind:
            raise UserError(
                f"{folder}: is a {kind}; ComfyUI and diffusers open its "
                "diffusion_pytorch_model.safetensors as it is"
            )
        if not (folder / "model_index.json").is_file():
            raise UserError(f"{folder}: holds no model_index.json (diffusers' layout)")
        places = {name: folder / name for name in COMPONENTS} | ({"vae": vae} if vae else {})
        configs = {name: read_json(place / "config.json") for name, place in places.items()}
        unet = configs["unet"]
        if unet.get("addition_embed_type") != "text_time":
            raise UserError(f"{folder}: its UNet is not SDXL's (no addition_embed_type=text_time)")
        scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
        return cls(folder, scheduler=scheduler, **configs)

    @property
    def unet_names(self) -> Names:
        """The UNet's names."""
        return unet_names(self.unet)

    @property
    def vae_names(self) -> Names:
        """The VAE's names."""
        return vae_names(self.vae)

    @property
    def resolution(self) -> int:
        """Side of its pictures, in pixels."""
        cell = 2 ** (len(self.vae["block_out_channels"]) - 1)
        return int(self.unet.get("sample_size") or 128) * cell

    @property
    def v_prediction(self) -> bool:
        """Whether it predicts v."""
        return self.scheduler.get("prediction_type") == "v_prediction"

    @property
    def zero_snr(self) -> bool:
        """Whether its noise schedule ends in noise alone."""
        return bool(self.scheduler.get("rescale_betas_zero_snr"))

    def check(self, component: str, tensors: Sources, place: Path) -> None:
        """Compare tensors, in diffusers' names, with what the config asks for.

        Raises:
            UserError: some are missing, too many, or of another shape.
        """
        config = self.folder / component / "config.json"
        check_tensors(self.shapes(component), tensors, f"{place}: {component}", config)

    def empty(self, component: str) -> torch.nn.Module:
        """Return a component on the meta device: its shapes without their memory, in float32.

        Raises:
            UserError: the config describes no such model.
        """
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

        config = getattr(self, component)
        kinds: dict[str, Any] = {
            "unet": UNet2DConditionModel.from_config,
            "vae": AutoencoderKL.from_config,
            "text_encoder": lambda tree: CLIPTextModel(CLIPTextConfig.from_dict(tree)),
            "text_encoder_2": lambda tree: CLIPTextModelWithProjection(
                CLIPTextConfig.from_dict(tree)
            ),
        }
        return on_meta(kinds[component], config, self.folder / component / "config.json")

    def shapes(self, component: str) -> dict[str, tuple[int, ...]]:
        """Return the shapes of a component's tensors, by their names in diffusers' layout."""
        model = self.empty(component)
        rename = text_name if component.startswith("text") else str
        return {rename(name): tuple(part.shape) for name, part in model.state_dict().items()}


def on_meta(
    make: Callable[[dict[str, Any]], torch.nn.Module], config: dict[str, Any], place: Path
) -> torch.nn.Module:
    """Make a model of its config on the meta device.

    Args:
        make: of a config.
        config: the model's.
        place: its file, for errors.

    Raises:
        UserError: the config describes no such model.
    """
    try:
        with torch.device("meta"):
            return make(config)
    except (OSError, ValueError, TypeError, LookupError, RuntimeError) as error:
        raise UserError(f"{place}: describes no model: {first_line(error)}") from None


def check_tensors(
    wanted: Mapping[str, tuple[int, ...]], tensors: Sources, place: str, config: Path
) -> None:
    """Compare tensors with what a config asks for.

    Args:
        wanted: shapes by the names in diffusers' layout.
        tensors: by these names.
        place: where they are, for errors.
        config: the file, for errors.

    Raises:
        UserError: some are missing, too many, or of another shape.
    """
    found = {name: part.shape for name, part in tensors.items()}
    for problem, names in (
        ("is missing", wanted.keys() - found.keys()),
        ("is not in its config", found.keys() - wanted.keys()),
        (
            "has another shape than its config says",
            {k for k in wanted.keys() & found.keys() if wanted[k] != found[k]},
        ),
    ):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise UserError(f"{place}: {min(names)} {problem}{more}; the config is {config}")


def read_json(path: Path) -> dict[str, Any]:
    """Read a config of a model in diffusers' layout.

    Raises:
        UserError: it is missing, or not JSON.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: is missing; is the folder a whole SDXL pipeline?") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not JSON: {error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: must hold a JSON object")
    return tree


def config_folder(name: str | None) -> Path:
    """Return the folder of an SDXL's configs and tokenizers; from the hub without its weights.

    Args:
        name: a folder in diffusers' layout, or a hub name; None: SDXL base.

    Raises:
        ConfigError: there is no such folder, and the hub has none.
    """
    found = locate(Named("--config", name or base.BASE))
    assert found, "the hub was asked"
    return found.path
