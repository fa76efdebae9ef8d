"""The pictures that a run draws as it trains: always the same prompts and seeds."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fairhuman.common.distributed import agreed
from fairhuman.common.files import replacing
from fairhuman.common.images import open_image
from fairhuman.common.run_folder import samples_sheet
from fairhuman.config import Config, SamplePrompt
from fairhuman.data.records import Record
from fairhuman.data.transform import Placement
from fairhuman.models.drawing import Picture, grid
from fairhuman.models.families.protocol import Family
from fairhuman.models.method import Method

_CAPTIONS = 4
"""That are taken from the data where no prompts are given."""


class SamplePictures:
    """Draws train.sample_prompts, or captions of the data where there are none.

    Args:
        config: the run's.
        family: the base model, whose text encoders may be away from the device.
        method: what is trained.
        records: the data: captions and control images are taken from it.

    Raises:
        DataError: a control image cannot be read; on every rank.
    """

    def __init__(
        self, config: Config, family: Family, method: Method, records: Sequence[Record]
    ) -> None:
        self.family = family
        self.method = method
        self.pictures = agreed(functools.partial(sample_pictures, records, config))

    def read_ahead(self, device: torch.device) -> None:
        """Encode the prompts now, where pictures of them then need no text encoders on a device."""
        texts = [text for each in self.pictures for text in (each.prompt, each.negative)]
        self.family.keep_prompts(texts, device)

    def write(self, output: Path, step: int, device: torch.device) -> Image.Image:
        """Draw one sheet of all pictures, write it under OUT/samples and return it."""
        with self.family.drawing_on(device):
            sheet = grid(list(self.family.drawn(self.method.pipeline, self.pictures)))
        with replacing(samples_sheet(output, step), sync=False) as aside:
            sheet.save(aside, "png")
        return sheet


def sample_pictures(records: Sequence[Record], config: Config) -> list[Picture]:
    """Return what a run draws: train.sample_prompts, or captions from all over the data.

    Control images that no prompt names are taken from there too.
    """
    train, side = config.train, config.data.resolution
    count = len(train.sample_prompts) or min(_CAPTIONS, len(records))
    places = np.linspace(0, len(records) - 1, count).astype(int)
    rng = np.random.default_rng(0)
    seed = train.seed if train.sample_seed is None else train.sample_seed
    pictures = []
    for index, record in enumerate(records[place] for place in places):
        asked = (
            train.sample_prompts[index]
            if train.sample_prompts
            else SamplePrompt.model_construct(prompt=record.text)
        )
        size = asked.size or train.sample_size or (side, side)
        control = Path(asked.control) if asked.control else record.conditioning
        pictures.append(
            Picture(
                prompt=asked.prompt,
                seed=seed + index if asked.seed is None else asked.seed,
                size=size,
                negative=train.sample_negative if asked.negative is None else asked.negative,
                steps=asked.steps or train.sample_steps,
                guidance=train.sample_guidance if asked.guidance is None else asked.guidance,
                control=_placed(open_image(control), size, rng) if control else None,
                lora_scale=_scale(asked, config),
            )
        )
    return pictures


def _placed(image: Image.Image, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    return Placement.draw(image.size, size, rng).image(image)


def _scale(asked: SamplePrompt, config: Config) -> float | None:
    if asked.lora_scale is not None:
        return asked.lora_scale
    scale = config.train.sample_lora_scale
    return None if scale == 1 else scale
