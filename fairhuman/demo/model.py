"""The demo's model: a tiny SDXL fitted to a data set's pictures, made once and kept."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from fairhuman.common.files import write_text
from fairhuman.common.images import open_image
from fairhuman.common.pixels import to_model
from fairhuman.common.quiet import quiet
from fairhuman.data.records import Reading, Record, load_records
from fairhuman.data.regions import Box
from fairhuman.demo.blurred import blurred
from fairhuman.demo.fit import UNET_STEPS, VAE_STEPS, fit_unet, fit_vae
from fairhuman.demo.tiny import tiny_sdxl
from fairhuman.models.families.sdxl.model import SDXL
from fairhuman.models.method import Full, save

STAMP = "demo-model.json"


@dataclass(frozen=True)
class Recipe:
    """How the tiny SDXL is made of a data set's pictures."""

    seed: int = 0
    vae_steps: int = VAE_STEPS
    unet_steps: int = UNET_STEPS
    cell: int = 8
    """Side of a latent cell, in pixels."""
    blur: float = 0.0
    """Faces and hands of the UNet's pictures are blurred, by this share of their boxes' longer
    sides; the VAE's pictures are not."""


def make_demo_model(data: Path, out: Path, recipe: Recipe | None = None) -> None:
    """Write a tiny SDXL, fitted to the pictures in `data`, as a diffusers folder.

    A folder that was made from the same data by the same recipe is left as it is.

    Raises:
        DataError: `data` is no data set, or is to be blurred and is not annotated.
    """
    recipe = recipe or Recipe()
    records, _ = load_records(data, Reading(("face", "hand") if recipe.blur else ()))
    wanted = {
        "images": len(records),
        "captions": [records[0].text, records[-1].text],
        "seed": recipe.seed,
        "vae_steps": recipe.vae_steps,
        "unet_steps": recipe.unet_steps,
        # Left out where they are as they always were, so that models of before are kept.
        **({"cell": recipe.cell} if recipe.cell != 8 else {}),
        **({"blur": recipe.blur} if recipe.blur else {}),
    }
    stamp = out / STAMP
    if stamp.is_file() and json.loads(stamp.read_text(encoding="utf-8")) == wanted:
        print(f"{out}: already exists")
        return
    quiet()
    images = [open_image(record.image) for record in records]
    pixels = to_model(images)
    side = pixels.shape[-1]
    captions = [record.text for record in records]
    seed, steps = recipe.seed, (recipe.vae_steps, recipe.unet_steps)
    sdxl = SDXL(tiny_sdxl(captions, seed, side, recipe.cell))
    with tqdm(total=sum(steps), unit="step", dynamic_ncols=True) as bar:

        def progress(stage: str, step: int, steps: int, loss: float) -> None:
            bar.set_postfix_str(f"{stage} {step}/{steps} loss {loss:.3f}", refresh=False)
            bar.update()

        fit_vae(sdxl.vae, pixels, steps=steps[0], seed=seed, progress=progress)
        if recipe.blur:
            pixels = to_model(
                [
                    blurred(image, boxes_of(record), recipe.blur)
                    for image, record in zip(images, records, strict=True)
                ]
            )
        time_ids = torch.tensor([side, side, 0, 0, side, side], dtype=torch.float32)
        fit_unet(sdxl, pixels, captions, time_ids, steps=steps[1], seed=seed, progress=progress)
    save(Full(sdxl), out)
    write_text(stamp, json.dumps(wanted))


def boxes_of(record: Record) -> list[Box]:
    """Return the boxes of all regions of an image."""
    return [box for annotation in record.regions.values() for box in annotation.boxes]
