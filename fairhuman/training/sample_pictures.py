"""The pictures that a run draws as it trains: always the same prompts and seeds."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from fairhuman.common.distributed import agreed
from fairhuman.common.files import replacing
from fairhuman.common.images import open_image
from fairhuman.common.run_folder import samples_sheet
from fairhuman.config import Config
from fairhuman.data.records import Record
from fairhuman.data.transform import Placement
from fairhuman.models.drawing import grid
from fairhuman.models.families.protocol import Family
from fairhuman.models.method import Method


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
        self.config = config
        self.family = family
        self.method = method
        self.examples = agreed(functools.partial(_examples, records, config))

    def write(self, output: Path, step: int, device: torch.device) -> Image.Image:
        """Draw one sheet of all pictures, write it under OUT/samples and return it."""
        with self.family.encoders_on(device):
            drawn = self.family.drawn(
                self.method.pipeline,
                [example.prompt for example in self.examples],
                controls=[example.control for example in self.examples if example.control],
                seed=self.config.train.seed,
                size=self.config.data.resolution,
                guidance=self.config.train.sample_guidance,
            )
            sheet = grid(list(drawn))
        with replacing(samples_sheet(output, step), sync=False) as aside:
            sheet.save(aside, "png")
        return sheet


class _Example(NamedTuple):
    """What a sample picture is drawn from."""

    prompt: str
    control: Image.Image | None


def _examples(records: Sequence[Record], config: Config, count: int = 4) -> list[_Example]:
    """Return the prompts, or captions from all over the data, and control images from there."""
    prompts = config.train.sample_prompts
    count = len(prompts) or min(count, len(records))
    places = np.linspace(0, len(records) - 1, count).astype(int)
    size = (config.data.resolution, config.data.resolution)
    rng = np.random.default_rng(0)
    examples = []
    for index, record in enumerate(records[place] for place in places):
        control = None
        if record.conditioning:
            placement = Placement.draw(record.size, size, rng)
            control = placement.image(open_image(record.conditioning))
        examples.append(_Example(prompts[index] if prompts else record.text, control))
    return examples
