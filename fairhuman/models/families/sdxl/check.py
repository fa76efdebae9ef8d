"""Check a model before its weights are read: is it an SDXL, whole, and do its parts fit?

Configs and the headers of safetensors are read, nothing else: a second or two for SDXL.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairhuman.common.errors import ConfigError, UserError
from fairhuman.common.hub import Named, Place, locate
from fairhuman.config import Model
from fairhuman.models.families.keys import Keys
from fairhuman.models.families.registry import pipelines
from fairhuman.models.formats import kinds
from fairhuman.models.formats.base import BASE
from fairhuman.models.formats.kinds import Kind, file_kind, folder_kind
from fairhuman.models.formats.pipeline_folder import COMPONENTS, PipelineFolder
from fairhuman.models.formats.single_file import in_one_form, opened_parts
from fairhuman.models.formats.weights import PICKLED, open_weights, weights_in

SINGLE = ".safetensors"
_BELONGS = {
    kinds.LORA: "give the SDXL that it was trained on (and to draw with it: generate --lora)",
    kinds.VAE: "give a whole SDXL; this one belongs to model.vae",
    kinds.CONTROLNET: "give a whole SDXL; this one belongs to model.control, or generate "
    "--controlnet",
    kinds.ADAPTER: "give a whole SDXL; this one belongs to model.control, or generate --adapter",
}
_TOKENIZERS = ("tokenizer", "tokenizer_2")


@dataclass(frozen=True)
class Checked:
    """A model that may be loaded."""

    layout: PipelineFolder | None
    """Its configs; None: it is not on this machine, and was not asked for."""
    place: Place | None
    config: Place | None
    """Of a single file."""
    vae: Place | None


def check_model(settings: Model, keys: Keys | None = None, ask_hub: bool = True) -> Checked:
    """Check the models that the section `model` names.

    Args:
        settings: the section.
        keys: what to call them in messages; None: the config's keys.
        ask_hub: otherwise what is not on this machine is passed over.

    Raises:
        ConfigError: one is not there, is no such model, or does not fit the others; names its key.
    """
    keys = keys or Keys()
    named = Named(keys.pretrained, settings.pretrained)
    place = locate(named, ask_hub)
    vae = _vae(Named(keys.vae, settings.vae), ask_hub) if settings.vae else None
    config = layout = None
    if place and place.path.is_file():
        config_named = Named(keys.config, settings.config or BASE)
        _check_suffix(named, place.path)
        _refuse_kind(named, _file_kind(named, place.path))
        config = locate(config_named, ask_hub)
        if config:
            with _blamed(config_named):
                _refuse_kind(config_named, folder_kind(config.path))
                layout = PipelineFolder.read(config.path)
            with _blamed(named), opened_parts(place.path, config.path):
                pass
    elif place:
        layout = _pipeline(named, place, vae)
    if vae and layout:
        _check_vae(Named(keys.vae, str(settings.vae)), vae, layout)
    if settings.control and settings.conditioned:
        kind = kinds.CONTROLNET if settings.method == "controlnet" else kinds.ADAPTER
        check_control(Named(keys.control, settings.control), kind, ask_hub)
    return Checked(layout, place, config, vae)


def check_control(named: Named, kind: str, ask_hub: bool = True) -> Place | None:
    """Check that something is a ControlNet or a T2I-Adapter.

    Args:
        named: the key, with a folder or a hub name.
        kind: `kinds.CONTROLNET` or `kinds.ADAPTER`.
        ask_hub: otherwise what is not on this machine is passed over.

    Raises:
        ConfigError: it is not there, not whole, or something else.
    """
    place = locate(named, ask_hub)
    if place:
        _check_alone(named, place, kind)
        if place.whole:
            with _blamed(named), open_weights(weights_in(place.path)):
                pass
    return place


def _pipeline(named: Named, place: Place, vae: Place | None) -> PipelineFolder:
    folder = place.path
    with _blamed(named):
        kind = folder_kind(folder)
        if kind is None:
            files = sorted(folder.glob(f"*{SINGLE}"))
            hint = f"; give the file itself: {files[0]}" if files else ""
            named.refuse(f"holds no model_index.json (diffusers' layout){hint}")
        _refuse_kind(named, kind)
        layout = PipelineFolder.read(folder, vae.path if vae else None)
    _check_parts(named, layout, own_vae=vae is None)
    own = [name for name in COMPONENTS if not (vae and name == "vae")]
    for name in _TOKENIZERS if place.whole else ():
        if not any((folder / name).glob("*.json")):
            named.refuse(f"{name}: is missing; is the folder a whole SDXL pipeline?")
    for name in own if place.whole else ():
        with _blamed(named):
            _check_header(layout, name, folder / name)
    return layout


def _check_parts(named: Named, layout: PipelineFolder, own_vae: bool) -> None:
    """Check that the parts fit one another, by their configs."""
    unet, latents = layout.unet, layout.vae.get("latent_channels", 4)
    width = _sum(layout.text_encoder.get("hidden_size"), layout.text_encoder_2.get("hidden_size"))
    pooled = layout.text_encoder_2.get("projection_dim")
    sizes = unet.get("addition_time_embed_dim")
    numbers = 6 * sizes + pooled if isinstance(sizes, int) and isinstance(pooled, int) else None
    if own_vae and unet.get("in_channels", 4) != latents:  # another one is checked by its key
        named.refuse(
            f"its UNet takes {unet.get('in_channels', 4)!r} channels and its VAE gives {latents!r};"
            " FairHuman trains no inpainting or editing models"
        )
    if unet.get("cross_attention_dim") != width:
        named.refuse(
            f"its UNet reads captions of width {unet.get('cross_attention_dim')!r}, its text "
            f"encoders write {width!r}: they are not of one model"
        )
    if unet.get("projection_class_embeddings_input_dim") != numbers:
        named.refuse(
            "its UNet takes other conditions than SDXL's six numbers and pooled caption "
            f"(projection_class_embeddings_input_dim is not {numbers!r}); is it the refiner?"
        )


def _sum(first: Any, second: Any) -> int | None:
    return first + second if isinstance(first, int) and isinstance(second, int) else None


def _check_header(layout: PipelineFolder, name: str, folder: Path) -> None:
    """Compare the names and shapes in a header with the config; what is more is never loaded."""
    path = weights_in(folder)
    with open_weights(path) as weights:
        found = in_one_form(name, weights.tensors)
        wanted = layout.shapes(name)
        for tensor, shape in sorted(wanted.items()):
            if tensor not in found:
                raise UserError(f"{path}: {tensor} is missing")
            if found[tensor].shape != shape:
                raise UserError(
                    f"{path}: {tensor} is of shape {found[tensor].shape}, and by its config.json "
                    f"it is {shape}"
                )


def _vae(named: Named, ask_hub: bool) -> Place | None:
    place = locate(named, ask_hub)
    if place:
        _check_alone(named, place, kinds.VAE)
    return place


def _check_vae(named: Named, place: Place, layout: PipelineFolder) -> None:
    given, wanted = layout.vae.get("latent_channels", 4), layout.unet.get("in_channels", 4)
    if given != wanted:
        named.refuse(f"its latents have {given!r} channels, and the UNet takes {wanted!r}")
    if place.whole:
        with _blamed(named):
            _check_header(layout, "vae", place.path)


def _check_alone(named: Named, place: Place, wanted: str) -> None:
    """Check that a folder holds one model of a class."""
    if place.path.is_file():
        named.refuse("is a file; give a folder in diffusers' layout, or a hub name")
    with _blamed(named):
        kind = folder_kind(place.path)
    wanted_kind = Kind(wanted)
    if kind is None:
        named.refuse(f"holds no config.json of {wanted_kind}")
    if kind.name == wanted:
        return
    inner = place.path / "vae"
    if wanted == kinds.VAE and (inner / "config.json").is_file():
        named.refuse(f"is {kind}; give its folder of the VAE alone: {inner}")
    named.refuse(f"is {kind}, not {wanted_kind}")


def _refuse_kind(named: Named, kind: Kind | None) -> None:
    """Refuse what is no SDXL pipeline; `None` is not known to be none."""
    if kind is None or kind.of_sdxl:
        return
    named.refuse(f"is {kind}; {_BELONGS.get(kind.name) or _trained()}")


def _trained() -> str:
    return f"FairHuman trains what is of {', '.join(pipelines())}"


def _check_suffix(named: Named, file: Path) -> None:
    if file.suffix in PICKLED:
        named.refuse("is pickled and could run code when opened; get it as .safetensors")
    if file.suffix != SINGLE:
        named.refuse("is a file, and no .safetensors")


def _file_kind(named: Named, file: Path) -> Kind | None:
    with _blamed(named), open_weights(file) as weights:
        return file_kind(weights.tensors)


@contextmanager
def _blamed(named: Named) -> Iterator[None]:
    """Have what is wrong with a model's files name the key that gives it."""
    try:
        yield
    except ConfigError:
        raise
    except UserError as error:
        named.refuse(str(error).removeprefix(f"{named.value}: "))
