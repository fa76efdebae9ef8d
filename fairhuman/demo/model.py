"""The demo's model: a tiny SDXL fitted to a data set's pictures, made once and kept."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tqdm import tqdm

from fairhuman.common.files import write_text
from fairhuman.common.images import open_image
from fairhuman.common.pixels import to_model
from fairhuman.common.quiet import quiet
from fairhuman.data.records import load_records
from fairhuman.demo.fit import UNET_STEPS, VAE_STEPS, fit_unet, fit_vae
from fairhuman.demo.tiny import tiny_sdxl
from fairhuman.models.method import Full, save
from fairhuman.models.sdxl import SDXL

STAMP = "demo-model.json"


def make_demo_model(
    data: Path, out: Path, seed: int = 0, vae_steps: int = VAE_STEPS, unet_steps: int = UNET_STEPS
) -> None:
    """Write a tiny SDXL, fitted to the pictures in `data`, as a diffusers folder.

    A folder that was made from the same data, seed and steps is left as it is.

    Raises:
        DataError: `data` is no data set.
    """
    records, _ = load_records(data, regions=())
    wanted = {
        "images": len(records),
        "captions": [records[0].text, records[-1].text],
        "seed": seed,
        "vae_steps": vae_steps,
        "unet_steps": unet_steps,
    }
    stamp = out / STAMP
    if stamp.is_file() and json.loads(stamp.read_text(encoding="utf-8")) == wanted:
        print(f"{out}: already exists")
        return
    quiet()
    pixels = to_model([open_image(record.image) for record in records])
    side = float(pixels.shape[-1])
    captions = [record.text for record in records]
    sdxl = SDXL(tiny_sdxl(captions, seed))
    with tqdm(total=vae_steps + unet_steps, unit="step", dynamic_ncols=True) as bar:

        def progress(stage: str, step: int, steps: int, loss: float) -> None:
            bar.set_postfix_str(f"{stage} {step}/{steps} loss {loss:.3f}", refresh=False)
            bar.update()

        fit_vae(sdxl.vae, pixels, steps=vae_steps, seed=seed, progress=progress)
        time_ids = torch.tensor([side, side, 0.0, 0.0, side, side])
        fit_unet(sdxl, pixels, captions, time_ids, steps=unet_steps, seed=seed, progress=progress)
    save(Full(sdxl), out)
    write_text(stamp, json.dumps(wanted))
