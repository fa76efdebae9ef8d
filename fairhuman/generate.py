"""Pictures from a trained model, as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors import SafetensorError

from fairhuman.common.images import open_image
from fairhuman.config import Model
from fairhuman.errors import UserError
from fairhuman.export.lora import lora_file
from fairhuman.models.control import (
    load_adapter,
    load_controlnet,
    with_adapter,
    with_controlnet,
)
from fairhuman.models.sdxl import SDXL
from fairhuman.pictures import draw, grid
from fairhuman.runtime import quiet


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
) -> list[Path]:
    """Write one PNG per prompt and, for several, grid.png; return the pictures' paths.

    Each PNG carries its prompt, seed and settings as text. Existing files are never replaced.

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

    Raises:
        UserError: no prompt, no such model, LoRA or control image, a size that is no multiple of
            8, pictures in `out`.
    """
    if not prompts:
        raise UserError("--prompt, --prompts: give at least one prompt")
    if batch_size < 1:
        raise UserError(f"--batch-size {batch_size}: must be at least 1")
    if size is not None and (size <= 0 or size % 8):
        raise UserError(f"--size {size}: must be a multiple of 8")
    paths = [out / f"{index:04d}.png" for index in range(len(prompts))]
    existing = next((path for path in [*paths, out / "grid.png"] if path.exists()), None)
    if existing:
        raise UserError(f"{existing}: is there already; choose another --out")
    opened = _open_controls(controls, len(prompts), controlnet, adapter)
    file = _lora_file(lora) if lora else None
    quiet()
    cuda = torch.cuda.is_available()
    sdxl = SDXL.load(
        Model(pretrained=model, config=config),
        torch.float16 if cuda else torch.float32,
        torch.device("cuda" if cuda else "cpu"),
    )
    if file:
        _load_lora(sdxl, file, lora_scale)
    pipeline = sdxl.pipeline
    if controlnet:
        pipeline = with_controlnet(pipeline, load_controlnet(controlnet, sdxl.unet).eval())
    elif adapter:
        pipeline = with_adapter(pipeline, load_adapter(adapter, sdxl.unet).eval())
    sdxl.unet.eval()
    size = size or int(sdxl.pipeline.default_sample_size) * sdxl.cell
    pictures = draw(
        pipeline,
        prompts,
        controls=opened,
        batch_size=batch_size,
        seed=seed,
        size=size,
        steps=steps,
        guidance=guidance,
        negative=negative,
    )
    out.mkdir(parents=True, exist_ok=True)
    for index, (path, picture, prompt) in enumerate(zip(paths, pictures, prompts, strict=True)):
        info = PngInfo()
        for key, value in {
            "prompt": prompt,
            "negative_prompt": negative,
            "seed": seed + index,
            "steps": steps,
            "guidance": guidance,
            "model": model,
            **({"lora": lora, "lora_scale": lora_scale} if lora else {}),
            **({"controlnet": controlnet} if controlnet else {}),
            **({"adapter": adapter} if adapter else {}),
            **({"control": controls[index % len(controls)]} if controls else {}),
        }.items():
            info.add_itxt(key, str(value))
        picture.save(path, pnginfo=info)
    if len(pictures) > 1:
        grid(pictures).save(out / "grid.png")
    return paths


def read_prompts(path: Path) -> list[str]:
    """Return the lines of a text file that are not empty.

    Raises:
        UserError: there is no such file, or it is no text.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompts {path}: cannot be read: {error}") from None
    return [line.strip() for line in lines if line.strip()]


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
    try:
        opened = [open_image(path) for path in controls]
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"--control: cannot be read as an image: {error}") from error
    return opened * count if len(opened) == 1 else opened


def _lora_file(lora: Path) -> Path:
    """Return the file of a LoRA, before the model is loaded."""
    file = lora_file(lora)
    if not file.is_file():
        raise UserError(f"--lora {lora}: there is no such file or folder")
    if file.suffix != ".safetensors":  # diffusers would read a pickled one all the same
        raise UserError(f"--lora {lora}: is no .safetensors file; others can hold code")
    return file


def _load_lora(sdxl: SDXL, file: Path, scale: float) -> None:
    """Add a LoRA to a pipeline."""
    try:
        sdxl.pipeline.load_lora_weights(
            file.parent, weight_name=file.name, adapter_name="lora", use_safetensors=True
        )
        sdxl.pipeline.set_adapters("lora", scale)
    except (ValueError, RuntimeError, LookupError, OSError, SafetensorError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"--lora {file}: does not fit the model: {first}") from error
