"""Pictures from a trained model, as files."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import ValidationError

from fairhuman.common.error_text import first_line
from fairhuman.common.errors import OutputError, UserError
from fairhuman.common.files import replacing
from fairhuman.common.hub import Named
from fairhuman.common.images import open_image, upright_size
from fairhuman.common.quiet import quiet
from fairhuman.config import Model
from fairhuman.config.yaml_settings import explain
from fairhuman.models.drawing import drawn, grid
from fairhuman.models.families.keys import Keys
from fairhuman.models.families.sdxl import captions
from fairhuman.models.families.sdxl.check import check_control, check_model
from fairhuman.models.families.sdxl.control import (
    load_adapter,
    load_controlnet,
    with_adapter,
    with_controlnet,
)
from fairhuman.models.families.sdxl.model import SDXL
from fairhuman.models.lora_file import check_lora, find_lora, load_lora
from fairhuman.models.prompts import check_texts, long_lines

KEYS = Keys("--model", "--config")
GRID = "grid.png"

_MOST_STEPS, _MOST_SIZE, _MOST_BATCH, _MOST_PICTURES = 1000, 8192, 1024, 100_000
_MOST_GRID = 64_000_000
"""Pixels of grid.png: the pictures are drawn smaller in it where they are more."""


@dataclass(frozen=True)
class Source:
    """The model that draws, and what is added to it."""

    model: str
    """OUT/final, or any SDXL: a folder in diffusers' layout, a hub name or a single file."""
    config: str | None = None
    """Of a single file: an SDXL in diffusers' layout that describes it."""
    lora: Path | None = None
    """A LoRA of the model, a folder or a .safetensors file of diffusers or kohya."""
    lora_scale: float = 1.0
    """The factor on the LoRA's update."""
    controlnet: str | None = None
    """A ControlNet of the model, a folder in diffusers' layout or a hub name."""
    adapter: str | None = None
    """A T2I-Adapter in its place."""
    controls: Sequence[Path] = ()
    """Their control images: one for all pictures, or one each."""


@dataclass(frozen=True)
class Sampling:
    """How pictures are sampled."""

    negative: str = ""
    """What should not be in the pictures."""
    seed: int = 0
    """Of the first picture; each has the next."""
    steps: int = 30
    """Of the sampler."""
    guidance: float = 5.0
    """Scale of classifier-free guidance."""
    size: int | None = None
    """Side in pixels; None: the model's own."""
    batch_size: int = 4
    """How many are drawn at a time."""
    long_prompts: Literal["cut", "chunk"] = "cut"
    """"cut" reads the first 75 tokens of a prompt, "chunk" as many chunks of 75 as it has, up to
    16; see `models.captions`."""

    @property
    def most_chunks(self) -> int:
        """How many chunks of tokens are read of a prompt."""
        return captions.MOST_CHUNKS if self.long_prompts == "chunk" else 1


def generate(
    source: Source,
    prompts: Sequence[str],
    out: Path,
    sampling: Sampling | None = None,
    say: Callable[[str], None] = print,
) -> list[Path]:
    """Write one PNG per prompt and, for several, grid.png; return the pictures' paths.

    Each is written when it is drawn, whole or not at all, and carries its prompt, seed and settings
    as text. Existing files are never replaced.

    Args:
        source: the model, with its LoRA, ControlNet or adapter.
        prompts: of the pictures, one each.
        out: the folder to write to.
        sampling: None for the defaults.
        say: gets a line on prompts that are too long.

    Raises:
        UserError: no prompt, a number out of range, no such model, LoRA or control image, pictures
            in `out`: all before the model is loaded.
        OutputError: `out` cannot be written to.
    """
    sampling = sampling or Sampling()
    check_texts(prompts, sampling.negative)
    _check_numbers(len(prompts), sampling, source.lora_scale)
    paths = [out / f"{index:04d}.png" for index in range(len(prompts))]
    _check_out(out, [*paths, out / GRID])
    controls = _open_controls(source, len(prompts))
    quiet()
    sdxl, pipeline = _load(source)
    for line in long_lines(pipeline, prompts, sampling.negative, sampling.most_chunks):
        say(line)
    size = sampling.size or int(sdxl.pipeline.default_sample_size) * sdxl.cell
    pictures = drawn(
        pipeline,
        prompts,
        controls=controls,
        batch_size=sampling.batch_size,
        seed=sampling.seed,
        size=size,
        steps=sampling.steps,
        guidance=sampling.guidance,
        negative=sampling.negative,
        most_chunks=sampling.most_chunks,
    )
    _make_folder(out)
    try:
        for index, path, prompt, picture in zip(count(), paths, prompts, pictures, strict=False):
            _save(picture, path, _settings_of(source, sampling, prompt, index))
    except torch.cuda.OutOfMemoryError:
        raise UserError(
            f"the GPU's memory is too small for --batch-size {sampling.batch_size} at {size} px; "
            "give less"
        ) from None
    if len(paths) > 1:
        _save(_sheet(paths), out / GRID, {})
    return paths


def _load(source: Source) -> tuple[SDXL, Any]:
    """Check all that was named before the first weight is read, then load it."""
    settings = _settings(source.model, source.config)
    lora = find_lora(source.lora) if source.lora else None
    found = check_model(settings, KEYS)
    if lora:
        check_lora(lora, found.layout.unet if found.layout else {})
    if source.controlnet:
        check_control(Named("--controlnet", source.controlnet), "ControlNetModel")
    if source.adapter:
        check_control(Named("--adapter", source.adapter), "T2IAdapter")
    cuda = torch.cuda.is_available()
    dtype, device = (torch.float16, "cuda") if cuda else (torch.float32, "cpu")
    sdxl = SDXL.load(settings, dtype, torch.device(device), KEYS)
    if lora:
        load_lora(sdxl, lora, source.lora_scale)
    pipeline = sdxl.pipeline
    if source.controlnet:
        control = load_controlnet(source.controlnet, sdxl.denoiser, "--controlnet")
        pipeline = with_controlnet(pipeline, control.eval())
    elif source.adapter:
        adapter = load_adapter(source.adapter, sdxl.denoiser, "--adapter")
        pipeline = with_adapter(pipeline, adapter.eval())
    sdxl.denoiser.eval()
    return sdxl, pipeline


def _settings_of(source: Source, sampling: Sampling, prompt: str, index: int) -> dict[str, object]:
    """Return what a picture's file says of how it was drawn."""
    found: dict[str, object] = {"prompt": prompt, "seed": sampling.seed + index}
    if source.controls:
        found["control"] = source.controls[index % len(source.controls)]
    found |= {
        "negative_prompt": sampling.negative,
        "steps": sampling.steps,
        "guidance": sampling.guidance,
        "model": source.model,
    }
    if sampling.long_prompts != "cut":
        found["long_prompts"] = sampling.long_prompts
    if source.lora:
        found |= {"lora": source.lora, "lora_scale": source.lora_scale}
    if source.controlnet:
        found["controlnet"] = source.controlnet
    if source.adapter:
        found["adapter"] = source.adapter
    return found


def _settings(model: str, config: str | None) -> Model:
    try:
        return Model(pretrained=model, config=config)
    except ValidationError as error:
        lines = [line.replace("pretrained", "model", 1) for line in explain(error, Model)]
        raise UserError("\n".join(f"--{line}" for line in lines)) from None


def _check_numbers(pictures: int, sampling: Sampling, lora_scale: float) -> None:
    if pictures > _MOST_PICTURES:
        raise UserError(f"--count, --prompts: {pictures} pictures; {_MOST_PICTURES} at most")
    last = 2**63 - pictures
    if not 0 <= sampling.seed <= last:
        raise UserError(f"--seed {sampling.seed}: must be from 0 to {last} (2^63 - the pictures)")
    if not 1 <= sampling.steps <= _MOST_STEPS:
        raise UserError(f"--steps {sampling.steps}: must be from 1 to {_MOST_STEPS}")
    if not (math.isfinite(sampling.guidance) and 0 <= sampling.guidance <= 1000):
        raise UserError(f"--guidance {sampling.guidance}: must be from 0 to 1000")
    if not 1 <= sampling.batch_size <= _MOST_BATCH:
        raise UserError(
            f"--batch-size {sampling.batch_size}: must be at least 1, and at most {_MOST_BATCH}"
        )
    if sampling.size is not None and (sampling.size % 8 or not 8 <= sampling.size <= _MOST_SIZE):
        raise UserError(f"--size {sampling.size}: must be a multiple of 8, from 8 to {_MOST_SIZE}")
    if not (math.isfinite(lora_scale) and abs(lora_scale) <= 1000):
        raise UserError(f"--lora-scale {lora_scale}: must be from -1000 to 1000")


def _check_out(out: Path, files: Sequence[Path]) -> None:
    """Check that the files can be written, and replace none; nothing is made yet."""
    try:
        above = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
        existing = next((file for file in files if file.exists()), None)
    except OSError as error:
        raise OutputError(f"--out {str(out)[:200]}: cannot be used: {error.strerror}") from None
    if not above.is_dir():
        raise OutputError(f"--out {out}: {above} is a file; give a folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise OutputError(f"--out {out}: {above} cannot be written to")
    if existing:
        raise UserError(f"{existing}: already exists; choose another --out")


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"--out {out}: cannot be made: {error.strerror}") from None


def _save(picture: Image.Image, path: Path, texts: Mapping[str, object]) -> None:
    """Write a PNG whole or not at all, never over another."""
    info = PngInfo()
    for key, value in texts.items():
        info.add_itxt(key, str(value))
    try:
        with replacing(path, sync=False) as aside:
            picture.save(aside, "png", pnginfo=info)
            if path.exists():
                raise UserError(f"{path}: was written meanwhile; choose another --out")
    except OutputError as error:
        raise OutputError(f"{error}; those before it are kept") from None


def _sheet(paths: Sequence[Path]) -> Image.Image:
    """Return a grid of pictures on disk, smaller ones if they are very many."""
    side, _ = upright_size(paths[0])
    side = max(1, min(side, math.isqrt(_MOST_GRID // len(paths))))
    pictures = []
    for path in paths:
        pictures.append(open_image(path))
        if pictures[-1].size[0] > side:
            pictures[-1].thumbnail((side, side))
    return grid(pictures)


def _open_controls(source: Source, count: int) -> list[Image.Image]:
    """Return the control image of each picture."""
    controls = source.controls
    if source.controlnet and source.adapter:
        raise UserError("--controlnet and --adapter: give one of them")
    if bool(controls) != bool(source.controlnet or source.adapter):
        raise UserError("--control: an image is needed with --controlnet or --adapter, and only so")
    if len(controls) > 1 and len(controls) != count:
        raise UserError(
            f"--control: {len(controls)} images for {count} pictures; give 1 or {count}"
        )
    opened = []
    for path in controls:
        try:
            opened.append(open_image(path))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            why = getattr(error, "strerror", None) or first_line(error)
            raise UserError(f"--control {path}: cannot be read as an image: {why}") from error
    return opened * count if len(opened) == 1 else opened
