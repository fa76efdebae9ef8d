"""Pictures from a trained model, as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL.PngImagePlugin import PngInfo

from fairhuman.config import Model
from fairhuman.errors import UserError
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
) -> list[Path]:
    """Write one PNG per prompt and, for several, grid.png; return the pictures' paths.

    Each PNG carries its prompt, seed and settings as text. Existing files are never replaced.

    Raises:
        UserError: no such model, a size that is no multiple of 8, pictures in `out` already.
    """
    if size is not None and (size <= 0 or size % 8):
        raise UserError(f"--size {size}: must be a multiple of 8")
    paths = [out / f"{index:04d}.png" for index in range(len(prompts))]
    existing = next((path for path in [*paths, out / "grid.png"] if path.exists()), None)
    if existing:
        raise UserError(f"{existing}: is there already; choose another --out")
    quiet()
    cuda = torch.cuda.is_available()
    sdxl = SDXL.load(
        Model(pretrained=model),
        torch.float16 if cuda else torch.float32,
        torch.device("cuda" if cuda else "cpu"),
    )
    sdxl.unet.eval()
    size = size or int(sdxl.pipeline.default_sample_size) * sdxl.cell
    pictures = draw(
        sdxl.pipeline,
        prompts,
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
        }.items():
            info.add_itxt(key, str(value))
        picture.save(path, pnginfo=info)
    if len(pictures) > 1:
        grid(pictures).save(out / "grid.png")
    return paths
