"""`fairhuman export`: what is asked for, from what is there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairhuman.common.errors import UserError
from fairhuman.common.units import DTYPES
from fairhuman.models.formats import kinds
from fairhuman.models.formats.denoiser_file import original_of, write_denoiser
from fairhuman.models.formats.flow_lora import of_transformer, write_flow_lora
from fairhuman.models.formats.kinds import file_kind, folder_kind
from fairhuman.models.formats.lora import WEIGHTS_NAME, from_kohya, is_kohya, lora_file, to_kohya
from fairhuman.models.formats.modelspec import parse_fields
from fairhuman.models.formats.originals import ORIGINALS
from fairhuman.models.formats.pipeline_folder import PipelineFolder, config_folder
from fairhuman.models.formats.single_file import from_single_file, to_single_file
from fairhuman.models.formats.weights import PICKLED, open_weights

_TO_CONVERT = "only an SDXL or a LoRA of one can be converted"


def export(
    model: Path,
    form: str,
    out: Path,
    *,
    dtype: str | None = None,
    config: str | None = None,
    meta: Sequence[str] = (),
    allow_pickle: bool = False,
    force: bool = False,
) -> str:
    """Write `model` in another form; return what was written, in a line.

    Args:
        model: a pipeline's folder, a single file, or a LoRA's folder or file.
        form: single-file, comfy-lora, kohya-lora or diffusers.
        out: the file or folder to write.
        dtype: one of `units.DTYPES`; None keeps each tensor's own.
        config: a pipeline's folder or hub name, whose configs are taken; None: SDXL base's.
        meta: `key=value` texts for the header.
        allow_pickle: read files that torch.save wrote, too (tensors only).
        force: replace `out`.

    Raises:
        UserError: this cannot be made of that, or `out` is there.
        OutputError: it cannot be written.
    """
    fields = parse_fields(meta)
    if not model.exists():
        raise UserError(f"--model {model}: there is no such file or folder")
    common: dict[str, Any] = {
        "dtype": DTYPES[dtype] if dtype else None,
        "allow_pickle": allow_pickle,
        "force": force,
    }
    if form != "diffusers" and out.suffix != ".safetensors":
        raise UserError(f"--out {out}: must end in .safetensors")
    if form == "single-file":
        if not model.is_dir():
            raise UserError(f"--model {model}: must be a pipeline's folder for --to single-file")
        original = original_of(model)
        if original:
            write_denoiser(model, original, out, fields=fields, **common)
            return (
                f"{out}: the transformer of {original.name} with the original names; text encoders "
                "and VAE are the base model's"
            )
        _check_folder(model)
        to_single_file(model, out, fields=fields, **common)
        return f"{out}: an SDXL checkpoint with the original names"
    if form in ("comfy-lora", "kohya-lora"):
        if model.is_dir() and not (model / WEIGHTS_NAME).is_file():
            found = folder_kind(model)
            what = f"is {found}" if found else f"holds no {WEIGHTS_NAME}"
            raise UserError(f"--model {model}: {what}; give a LoRA's folder or file")
        return _to_lora(model, form, out, config, fields, common)
    return _to_diffusers(model, out, config, fields, common)


def _to_lora(
    model: Path,
    form: str,
    out: Path,
    config: str | None,
    fields: dict[str, str],
    common: dict[str, Any],
) -> str:
    path, kohya = lora_file(model), form == "kohya-lora"
    with open_weights(path, allow_pickle=common["allow_pickle"]) as weights:
        if of_transformer(weights):
            dtype, force = common["dtype"], common["force"]
            write_flow_lora(
                path, weights, out, kohya=kohya, dtype=dtype, fields=fields, force=force
            )
            return f"{out}: a LoRA for {'kohya' if kohya else 'ComfyUI'}"
    to_kohya(path, out, unet=_unet(config), fields=fields, **common)
    return f"{out}: a LoRA for ComfyUI and kohya"


def _check_folder(model: Path) -> None:
    """Check that a folder holds an SDXL pipeline."""
    kind = folder_kind(model)
    if kind and kind.name == kinds.LORA:
        raise UserError(f"--model {model}: is a LoRA; use --to comfy-lora")
    if kind and not kind.of_sdxl and kind.name not in (kinds.CONTROLNET, kinds.ADAPTER):
        names = ", ".join(["SDXL", *(original.name for original in ORIGINALS.values())])
        raise UserError(f"--model {model}: is {kind}; only {names} can be one file")


def _to_diffusers(
    model: Path, out: Path, config: str | None, fields: dict[str, str], common: dict[str, Any]
) -> str:
    if out.suffix in (".safetensors", *PICKLED):
        raise UserError(f"--out {out}: must be a folder for --to diffusers")
    if (model / "model_index.json").is_file():
        raise UserError(f"--model {model}: is in diffusers' layout already")
    if model.is_dir() and not (model / WEIGHTS_NAME).is_file():
        found = folder_kind(model)
        what = f"is {found}; {_TO_CONVERT}" if found else f"holds no {WEIGHTS_NAME}"
        raise UserError(f"--model {model}: {what}")
    path = lora_file(model)
    with open_weights(path, allow_pickle=common["allow_pickle"]) as weights:
        lora = is_kohya(weights)
        if of_transformer(weights):
            raise UserError(
                f"--model {model}: is a LoRA of a transformer; the load_lora_weights of diffusers "
                "opens it as it is"
            )
        done = any(name.startswith(("unet.", "text_encoder")) for name in weights.tensors)
        kind = file_kind(weights.tensors)
    if done:
        raise UserError(f"--model {model}: is a LoRA in diffusers' layout already")
    if kind and not lora:
        raise UserError(f"--model {model}: is {kind}; {_TO_CONVERT}")
    if lora:
        from_kohya(path, out, unet=_unet(config), fields=fields, **common)
        return f"{out}: a LoRA for diffusers"
    if fields:
        raise UserError("--meta: diffusers' folders have no header to write it to")
    from_single_file(path, config_folder(config), out, **common)
    return f"{out}: a pipeline in diffusers' layout"


def _unet(config: str | None) -> dict[str, Any] | None:
    return PipelineFolder.read(config_folder(config)).unet if config else None
