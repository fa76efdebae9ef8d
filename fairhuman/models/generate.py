"""Pictures from a trained model, as files."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import ValidationError

from fairhuman.common.error_text import reason
from fairhuman.common.errors import OutputError, UserError
from fairhuman.common.files import replacing
from fairhuman.common.hub import Named
from fairhuman.common.images import open_image, upright_size
from fairhuman.common.quiet import quiet
from fairhuman.config import Model, SamplePrompt
from fairhuman.config.yaml_settings import explain
from fairhuman.models.drawing import Picture, grid
from fairhuman.models.families.keys import Keys
from fairhuman.models.families.protocol import Family
from fairhuman.models.families.registry import check_model
from fairhuman.models.families.sdxl import captions
from fairhuman.models.families.sdxl.check import check_control
from fairhuman.models.families.sdxl.control import (
    load_adapter,
    load_controlnet,
    with_adapter,
    with_controlnet,
)
from fairhuman.models.lora_file import check_lora, find_lora, load_lora
from fairhuman.models.prompts import check_texts
from fairhuman.models.quantized import quantize_blocks

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
    quantize: Literal["int8", "nf4"] | None = None
    """Bits of the denoiser's weights; see `model.quantize` in the config."""
    lora: Path | None = None
    """A LoRA of the model, of diffusers or kohya: a folder, a .safetensors file or a hub name."""
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


def generate(
    source: Source,
    prompts: Sequence[str | SamplePrompt],
    out: Path,
    sampling: Sampling | None = None,
    say: Callable[[str], None] = print,
) -> list[Path]:
    """Write one PNG per prompt and, for several, grid.png; return the pictures' paths.

    Each is written when it is drawn, whole or not at all, and carries its prompt, seed and settings
    as text. Existing files are never replaced.

    Args:
        source: the model, with its LoRA, ControlNet or adapter.
        prompts: of the pictures, one each; what one sets of its own goes before `sampling`.
        out: the folder to write to.
        sampling: None for the defaults.
        say: gets a line on prompts that are too long.

    Raises:
        UserError: no prompt, a number out of range, no such model, LoRA or control image, pictures
            in `out`: all before the model is loaded.
        OutputError: `out` cannot be written to.
    """
    sampling = sampling or Sampling()
    asked = [
        SamplePrompt.model_construct(prompt=prompt) if isinstance(prompt, str) else prompt
        for prompt in prompts
    ]
    texts = [each.prompt for each in asked]
    negatives = [sampling.negative if each.negative is None else each.negative for each in asked]
    check_texts(texts, [*dict.fromkeys([sampling.negative, *negatives])])
    _check_numbers(len(asked), sampling, source.lora_scale)
    _check_scales(source, asked)
    paths = [out / f"{index:04d}.png" for index in range(len(asked))]
    _check_out(out, [*paths, out / GRID])
    control_paths = _control_paths(source, asked)
    controls = _open_controls(control_paths)
    quiet()
    family, pipeline = load(source, sampling.long_prompts, [*texts, *negatives])
    for line in family.cut_prompts(texts, "prompts"):
        say(line)
    for line in family.cut_prompts([*dict.fromkeys(negatives)], "negative prompts"):
        say(line)
    side = sampling.size or family.side
    pictures = [
        Picture(
            prompt=each.prompt,
            seed=sampling.seed + index if each.seed is None else each.seed,
            size=each.size or (side, side),
            negative=negatives[index],
            steps=each.steps or sampling.steps,
            guidance=sampling.guidance if each.guidance is None else each.guidance,
            control=controls[index] if controls else None,
            lora_scale=each.lora_scale,
        )
        for index, each in enumerate(asked)
    ]
    files = family.drawn(pipeline, pictures, batch_size=sampling.batch_size)
    _make_folder(out)
    device = next(family.denoiser.parameters()).device
    try:
        with family.drawing_on(device):
            for index, file in enumerate(files):
                control = control_paths[index] if control_paths else None
                told = _settings_of(source, sampling, pictures[index], control)
                _save(file, paths[index], told)
    except torch.cuda.OutOfMemoryError:
        largest = max((picture.size for picture in pictures), key=math.prod)
        raise UserError(
            f"the GPU's memory is too small for --batch-size {sampling.batch_size} at "
            f"{largest[0]} x {largest[1]} px; give less"
        ) from None
    if len(paths) > 1:
        _save(_sheet(paths), out / GRID, {})
    return paths


def load(
    source: Source, long_prompts: Literal["cut", "chunk"] = "cut", texts: Sequence[str] = ()
) -> tuple[Family, Any]:
    """Return a model and the pipeline that draws with it and what is added to it.

    Args:
        source: what was named.
        long_prompts: see `Sampling`.
        texts: prompts and negative prompts. They are encoded before a quantized denoiser is on
            the GPU, beside which the text encoders may not fit.

    Raises:
        UserError: something that was named is not there, or does not fit; mostly before the first
            weight is read.
    """
    settings = _settings(source, long_prompts)
    named = Named("--lora", str(source.lora))
    lora = find_lora(named) if source.lora else None
    kind = check_model(settings, KEYS)
    if lora:
        check_lora(named, lora, kind.denoiser_config(settings, KEYS))
    if source.controlnet:
        check_control(Named("--controlnet", source.controlnet), "ControlNetModel")
    if source.adapter:
        check_control(Named("--adapter", source.adapter), "T2IAdapter")
    cuda = torch.cuda.is_available()
    dtype, device = (kind.draws_in, "cuda") if cuda else (torch.float32, "cpu")
    where = torch.device("cpu" if source.quantize else device)
    family = kind.load(settings, dtype, where, KEYS)
    if source.quantize:
        quantize_blocks(family.denoiser, source.quantize, torch.device(device))
    if lora:
        load_lora(family.pipeline, lora, source.lora_scale)
    if source.quantize:
        family.keep_prompts(texts, torch.device(device))
        family.denoiser.to(device)
    pipeline = family.pipeline
    if source.controlnet:
        control = load_controlnet(source.controlnet, family.denoiser, "--controlnet")
        pipeline = with_controlnet(pipeline, control.eval())
    elif source.adapter:
        adapter = load_adapter(source.adapter, family.denoiser, "--adapter")
        pipeline = with_adapter(pipeline, adapter.eval())
    family.denoiser.eval()
    return family, pipeline


def _settings_of(
    source: Source, sampling: Sampling, picture: Picture, control: Path | None
) -> dict[str, object]:
    """Return what a picture's file says of how it was drawn."""
    found: dict[str, object] = {"prompt": picture.prompt, "seed": picture.seed}
    if control:
        found["control"] = control
    found |= {
        "negative_prompt": picture.negative,
        "steps": picture.steps,
        "guidance": picture.guidance,
        "model": source.model,
    }
    if sampling.long_prompts != "cut":
        found["long_prompts"] = sampling.long_prompts
    if source.quantize:
        found["quantize"] = source.quantize
    if source.lora:
        scale = source.lora_scale if picture.lora_scale is None else picture.lora_scale
        found |= {"lora": source.lora, "lora_scale": scale}
    if source.controlnet:
        found["controlnet"] = source.controlnet
    if source.adapter:
        found["adapter"] = source.adapter
    return found


def _settings(source: Source, long_prompts: Literal["cut", "chunk"]) -> Model:
    """Return the section `model` of what is drawn with, for the family's checks."""
    method: dict[str, Any] = {}
    if source.controlnet or source.adapter:
        method = {"method": "controlnet" if source.controlnet else "t2i_adapter"}
    try:
        return Model(
            pretrained=source.model,
            config=source.config,
            long_captions=long_prompts,
            caption_chunks=captions.MOST_CHUNKS,
            **method,
        )
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
    side = max(side for path in paths for side in upright_size(path))
    side = max(1, min(side, math.isqrt(_MOST_GRID // len(paths))))
    pictures = []
    for path in paths:
        pictures.append(open_image(path))
        if max(pictures[-1].size) > side:
            pictures[-1].thumbnail((side, side))
    return grid(pictures)


def _check_scales(source: Source, asked: Sequence[SamplePrompt]) -> None:
    for each in asked:
        if each.lora_scale is not None and source.lora is None:
            raise UserError(
                each.refusal("lora_scale", "no --lora is given; give one, or remove it")
            )


def _control_paths(source: Source, asked: Sequence[SamplePrompt]) -> list[Path]:
    """Return the control image of each picture: its own, or of --control; [] where none is used."""
    controls, count = source.controls, len(asked)
    if source.controlnet and source.adapter:
        raise UserError("--controlnet and --adapter: give one of them")
    used = bool(source.controlnet or source.adapter)
    own = next((each for each in asked if each.control), None)
    if own and not used:
        raise UserError(
            own.refusal("control", "is for --controlnet or --adapter; give one, or remove it")
        )
    if bool(controls or own) != used:
        raise UserError("--control: an image is needed with --controlnet or --adapter, and only so")
    if len(controls) > 1 and len(controls) != count:
        raise UserError(
            f"--control: {len(controls)} images for {count} pictures; give 1 or {count}"
        )
    paths = []
    for index, each in enumerate(asked):
        if each.control:
            paths.append(Path(each.control))
        elif controls:
            paths.append(controls[index % len(controls)])
        elif used:
            raise UserError(each.refusal("control", "no image is given; add it, or give --control"))
    return paths


def _open_controls(paths: Sequence[Path]) -> list[Image.Image]:
    opened: dict[Path, Image.Image] = {}
    for path in dict.fromkeys(paths):
        try:
            opened[path] = open_image(path)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(
                f"--control {path}: cannot be read as an image: {reason(error)}"
            ) from error
    return [opened[path] for path in paths]
