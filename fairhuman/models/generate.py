"""Pictures from a trained model, as files."""

from __future__ import annotations

import math
import os
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

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
from fairhuman.models import captions
from fairhuman.models.check import Keys, check_control, check_model
from fairhuman.models.control import (
    load_adapter,
    load_controlnet,
    with_adapter,
    with_controlnet,
)
from fairhuman.models.drawing import drawn, grid
from fairhuman.models.formats.kinds import LORA, file_kind, folder_kind
from fairhuman.models.formats.lora import WEIGHTS_NAME, lora_file
from fairhuman.models.formats.weights import open_weights
from fairhuman.models.sdxl import SDXL, UNUSABLE

KEYS = Keys("--model", "--config")
GRID = "grid.png"

_MOST_STEPS, _MOST_SIZE, _MOST_BATCH, _MOST_PICTURES = 1000, 8192, 1024, 100_000
_MOST_GRID = 64_000_000
"""Pixels of grid.png: the pictures are drawn smaller in it where they are more."""


def generate(
    model: str,
    prompts: Sequence[str],
    out: Path,
    *,
    negative: str = "",
    seed: int = 0,
    steps: int = 30,
    guidance: float = 5.0,
    size: int | None = None,
    batch_size: int = 4,
    config: str | None = None,
    lora: Path | None = None,
    lora_scale: float = 1.0,
    controlnet: str | None = None,
    adapter: str | None = None,
    controls: Sequence[Path] = (),
    long_prompts: str = "cut",
    say: Callable[[str], None] = print,
) -> list[Path]:
    """Write one PNG per prompt and, for several, grid.png; return the pictures' paths.

    Each is written when it is drawn, whole or not at all, and carries its prompt, seed and settings
    as text. Existing files are never replaced.

    Args:
        model: OUT/final, or any SDXL: a folder in diffusers' layout, a hub name or a single file.
        prompts: of the pictures, one each.
        out: the folder to write to.
        negative: what should not be in the pictures.
        seed: of the first picture; each has the next.
        steps: of the sampler.
        guidance: scale of classifier-free guidance.
        size: side in pixels; None: the model's own.
        batch_size: how many are drawn at a time.
        config: of a single file: an SDXL in diffusers' layout that describes it.
        lora: a LoRA of the model, a folder or a .safetensors file of diffusers or kohya.
        lora_scale: how much it counts.
        controlnet: a ControlNet of the model, a folder in diffusers' layout or a hub name.
        adapter: a T2I-Adapter in its place.
        controls: their control images: one for all pictures, or one each.
        long_prompts: "cut" reads the first 75 tokens of a prompt, "chunk" as many chunks of 75 as
            it has, up to 16; see `models.captions`.
        say: gets a line on prompts that are too long.

    Raises:
        UserError: no prompt, a number out of range, no such model, LoRA or control image, pictures
            in `out`: all before the model is loaded.
        OutputError: `out` cannot be written to.
    """
    _check_texts(prompts, negative)
    _check_numbers(len(prompts), seed, steps, guidance, size, batch_size, lora_scale)
    paths = [out / f"{index:04d}.png" for index in range(len(prompts))]
    _check_out(out, [*paths, out / GRID])
    opened = _open_controls(controls, len(prompts), controlnet, adapter)
    quiet()
    settings = _settings(model, config)
    file = _lora_file(lora) if lora else None
    found = check_model(settings, KEYS)
    if file:
        _check_lora(file, found.layout.unet if found.layout else {})
    if controlnet:
        check_control(Named("--controlnet", controlnet), "ControlNetModel")
    if adapter:
        check_control(Named("--adapter", adapter), "T2IAdapter")
    cuda = torch.cuda.is_available()
    sdxl = SDXL.load(
        settings,
        torch.float16 if cuda else torch.float32,
        torch.device("cuda" if cuda else "cpu"),
        KEYS,
    )
    if file:
        _load_lora(sdxl, file, lora_scale)
    pipeline = sdxl.pipeline
    if controlnet:
        control = load_controlnet(controlnet, sdxl.unet, "--controlnet")
        pipeline = with_controlnet(pipeline, control.eval())
    elif adapter:
        pipeline = with_adapter(pipeline, load_adapter(adapter, sdxl.unet, "--adapter").eval())
    sdxl.unet.eval()
    most_chunks = captions.MOST_CHUNKS if long_prompts == "chunk" else 1
    for line in _long_lines(pipeline, prompts, negative, most_chunks):
        say(line)
    size = size or int(sdxl.pipeline.default_sample_size) * sdxl.cell
    told = {
        "negative_prompt": negative,
        "steps": steps,
        "guidance": guidance,
        "model": model,
        **({"long_prompts": long_prompts} if long_prompts != "cut" else {}),
        **({"lora": lora, "lora_scale": lora_scale} if lora else {}),
        **({"controlnet": controlnet} if controlnet else {}),
        **({"adapter": adapter} if adapter else {}),
    }
    pictures = drawn(
        pipeline,
        prompts,
        controls=opened,
        batch_size=batch_size,
        seed=seed,
        size=size,
        steps=steps,
        guidance=guidance,
        negative=negative,
        most_chunks=most_chunks,
    )
    _make_folder(out)
    try:
        for index, path, prompt, picture in zip(count(), paths, prompts, pictures, strict=False):
            own = {"prompt": prompt, "seed": seed + index}
            if controls:
                own["control"] = controls[index % len(controls)]
            _save(picture, path, own | told)
    except torch.cuda.OutOfMemoryError:
        raise UserError(
            f"the GPU's memory is too small for --batch-size {batch_size} at {size} px; give less"
        ) from None
    if len(paths) > 1:
        _save(_sheet(paths), out / GRID, {})
    return paths


def read_prompts(path: Path) -> list[str]:
    """Return the lines of a text file that are not empty.

    Raises:
        UserError: there is no such file, it is no text, or it has no prompt.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"--prompts {path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"--prompts {path}: cannot be read: is no text in UTF-8 ({error.reason})"
        ) from None
    # Not splitlines, which splits at characters that a prompt may hold.
    lines = [line.strip() for line in text.replace("\r\n", "\n").split("\n")]
    for number, line in enumerate(lines, start=1):
        if letter := _no_text(line):
            raise UserError(f"--prompts {path}, line {number}: holds {letter}; is it a text file?")
    prompts = [line for line in lines if line]
    if not prompts:
        raise UserError(f"--prompts {path}: holds no prompt; write one per line")
    return prompts


def _no_text(text: str) -> str | None:
    """Name a character that no text has: a control character, or half of a surrogate pair."""
    for letter in text:
        if letter not in "\t\n\r" and unicodedata.category(letter) in ("Cc", "Cs"):
            return f"the character U+{ord(letter):04X}, which is no text"
    return None


def _settings(model: str, config: str | None) -> Model:
    try:
        return Model(pretrained=model, config=config)
    except ValidationError as error:
        lines = [line.replace("pretrained", "model", 1) for line in explain(error, Model)]
        raise UserError("\n".join(f"--{line}" for line in lines)) from None


def _check_texts(prompts: Sequence[str], negative: str) -> None:
    if not prompts:
        raise UserError("--prompt, --prompts: give at least one prompt")
    for number, prompt in enumerate(prompts, start=1):
        if letter := _no_text(prompt):
            raise UserError(f"--prompt: prompt {number} holds {letter}")
    if letter := _no_text(negative):
        raise UserError(f"--negative: holds {letter}")


def _check_numbers(
    pictures: int,
    seed: int,
    steps: int,
    guidance: float,
    size: int | None,
    batch_size: int,
    lora_scale: float,
) -> None:
    if pictures > _MOST_PICTURES:
        raise UserError(f"--count, --prompts: {pictures} pictures; {_MOST_PICTURES} at most")
    last = 2**63 - pictures
    if not 0 <= seed <= last:
        raise UserError(f"--seed {seed}: must be from 0 to {last} (2^63 - the pictures)")
    if not 1 <= steps <= _MOST_STEPS:
        raise UserError(f"--steps {steps}: must be from 1 to {_MOST_STEPS}")
    if not (math.isfinite(guidance) and 0 <= guidance <= 1000):
        raise UserError(f"--guidance {guidance}: must be from 0 to 1000")
    if not 1 <= batch_size <= _MOST_BATCH:
        raise UserError(f"--batch-size {batch_size}: must be at least 1, and at most {_MOST_BATCH}")
    if size is not None and (size % 8 or not 8 <= size <= _MOST_SIZE):
        raise UserError(f"--size {size}: must be a multiple of 8, from 8 to {_MOST_SIZE}")
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


def _long_lines(
    pipeline: Any, prompts: Sequence[str], negative: str, most_chunks: int
) -> list[str]:
    """Return a line on prompts of which the end is not read."""
    counts = captions.token_counts(pipeline, [*prompts, negative])
    size = captions.room(pipeline, most_chunks)
    then = "the rest is cut off"
    if most_chunks == 1:
        then += "; --long-prompts chunk reads it too"
    return captions.long_ones(counts[:-1], size, "prompts", then) + captions.long_ones(
        counts[-1:], size, "negative prompts", then
    )


def _open_controls(
    controls: Sequence[Path], count: int, controlnet: str | None, adapter: str | None
) -> list[Image.Image]:
    """Return the control image of each picture."""
    if controlnet and adapter:
        raise UserError("--controlnet and --adapter: give one of them")
    if bool(controls) != bool(controlnet or adapter):
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


def _lora_file(lora: Path) -> Path:
    """Return the file of a LoRA, before the model is loaded."""
    if lora.is_dir() and not (lora / WEIGHTS_NAME).is_file() and (found := folder_kind(lora)):
        raise UserError(f"--lora {lora}: is {found}; give a LoRA's folder or file")
    file = lora_file(lora)
    if not file.is_file():
        raise UserError(f"--lora {lora}: there is no such file or folder")
    if file.suffix != ".safetensors":  # diffusers would read a pickled one all the same
        raise UserError(f"--lora {lora}: is no .safetensors file; others can hold code")
    return file


def _check_lora(lora: Path, unet: Mapping[str, Any]) -> None:
    """Check that a file is a LoRA for such a UNet, before the model is loaded."""
    with open_weights(lora) as weights:
        kind = file_kind(weights.tensors)
        if kind is None or kind.name != LORA:
            raise UserError(f"--lora {lora}: is {kind or 'no LoRA'}; give a LoRA's folder or file")
        widths = {
            source.shape[1]
            for name, source in weights.tensors.items()
            if "attn2" in name
            and any(part in name for part in ("to_k", "to_v"))
            and any(part in name for part in ("lora_A", "lora.down", "lora_down"))
            and len(source.shape) == 2
        }
    width = unet.get("cross_attention_dim")
    other = widths - {width}
    if width and other:
        of = {768: " (SD 1.x)", 1024: " (SD 2.x)", 2048: " (SDXL)"}.get(min(other), "")
        raise UserError(
            f"--lora {lora}: does not fit the model: it is of a UNet that reads captions of width "
            f"{min(other)}{of}, and --model's reads {width}"
        )


def _load_lora(sdxl: SDXL, file: Path, scale: float) -> None:
    """Add a LoRA to a pipeline."""
    try:
        sdxl.pipeline.load_lora_weights(
            file.parent, weight_name=file.name, adapter_name="lora", use_safetensors=True
        )
        sdxl.pipeline.set_adapters("lora", scale)
    except UNUSABLE as error:
        raise UserError(f"--lora {file}: does not fit the model: {first_line(error)}") from error
