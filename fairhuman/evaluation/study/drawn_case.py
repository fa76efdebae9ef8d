"""Drawn people, a tiny SDXL that is fitted to others of them, and prompts with a truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from fairhuman.common.errors import ConfigError
from fairhuman.common.pixels import to_model
from fairhuman.demo.drawn import draw_people
from fairhuman.demo.model import Recipe, make_demo_model
from fairhuman.evaluation.study.judge import Judge, drawn, look, make_judge, truth
from fairhuman.evaluation.study.plan import Drawn
from fairhuman.models.drawing import decode

# Seeds of people that have nobody in common.
FITTED, TRAINED, ASKED = 0, 1, 2


@dataclass(frozen=True)
class Share:
    """How well the faces, hands and finger tips found in pictures agree with their prompts.

    1 where each picture has as many as its prompt tells of; what is missing and what is there
    beyond (a sixth finger) count the same. Sums over pictures of min(told, found) over those of
    max(told, found).
    """

    faces: float
    hands: float
    tips: float


class DrawnCase:
    """What a study of drawn people needs in addition to its arms: made once and kept."""

    def __init__(self, output: Path, settings: Drawn, pictures: int) -> None:
        self.settings = settings
        self.people = output / "people"
        self.model = Path(settings.model) if settings.model else output / "tiny-sdxl"
        self._judge = output / "judge.safetensors"
        self.asked = drawn(ASKED, pictures, settings.size)

    def check(self) -> None:
        """Check that the model of another study is there.

        Raises:
            ConfigError: it is not.
        """
        if self.settings.model and not (self.model / "model_index.json").is_file():
            raise ConfigError(
                f"drawn.model = {self.settings.model!r}: there is no such model; run the study "
                "that fits it first"
            )

    def make(self) -> None:
        """Draw the people and fit the model, where they are not there."""
        settings = self.settings
        size, count = settings.size, settings.count
        stored = size * settings.detail
        draw_people(self.people, count, stored, TRAINED, zoom=settings.zoom, hands=settings.hands)
        if settings.model:
            return
        fitted = self.people.with_name("people-of-the-model")
        draw_people(fitted, count, size, FITTED)
        recipe = Recipe(
            vae_steps=self.settings.vae_steps,
            unet_steps=self.settings.unet_steps,
            cell=self.settings.cell,
            blur=self.settings.blur,
        )
        make_demo_model(fitted, self.model, recipe)

    def overrides(self) -> list[str]:
        """Return what makes a training config one of this case."""
        return [
            f"model.pretrained={self.model}",
            f"data.root={self.people}",
            "data.sources=[]",
            f"data.resolution={self.settings.size}",
            f"data.cache={self.people.with_name('cache')}",
            "data.cache_precision=fp32",  # small, and then the published figures' numbers
        ]

    def prompts(self) -> list[str]:
        """Return the captions of people that neither the model nor the arms have seen."""
        return [sample.text for sample in self.asked]

    def judge(self) -> Judge:
        """Return the judge, fitted if it is not there."""
        return make_judge(self._judge, self.settings.size, self.settings.judge_steps)

    def score(self, judge: Judge, pictures: Sequence[Image.Image]) -> Share:
        """Return how the pictures of the prompts, in their order, agree with them."""
        told = [truth(sample) for sample in self.asked[: len(pictures)]]
        found = look(judge, pictures)
        shares = [
            sum(min(a[k], b[k]) for a, b in zip(told, found, strict=True))
            / max(1, sum(max(a[k], b[k]) for a, b in zip(told, found, strict=True)))
            for k in range(3)
        ]
        return Share(*shares)

    def originals(self) -> dict[str, list[Image.Image]]:
        """Return the drawings of the prompts, and those after the model's VAE."""
        pictures = [sample.image for sample in self.asked]
        return {
            "the drawings themselves": pictures,
            "the drawings through the model's VAE": _through(self.model, pictures),
        }


def _through(model: Path, pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """Return pictures as a model's VAE encodes and decodes them."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(model / "vae", use_safetensors=True).eval()
    with torch.no_grad():
        latents = [vae.encode(part).latent_dist.mean for part in to_model(pictures).split(8)]
    return decode(vae, torch.cat(latents))
