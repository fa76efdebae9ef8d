"""What a study compares: a training config, its arms and seeds, and how they are measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from fairhuman.common.errors import ConfigError
from fairhuman.common.quoting import shown, shown_key
from fairhuman.config import Factor, Guidance, Positive, Probability, Seed
from fairhuman.config.json_schema import json_schema
from fairhuman.config.shipped import config_file
from fairhuman.config.yaml_settings import (
    Name,
    PathText,
    Section,
    Text,
    apply_override,
    read_yaml,
    refusal,
    validate,
)

NAME = r"^[A-Za-z0-9][A-Za-z0-9 .,+=()x-]*$"
ArmName = Annotated[str, Field(pattern=NAME, max_length=100)]


class Arm(Section):
    """One way to train."""

    set: Annotated[list[Text], Field(max_length=1000)] = []
    """Its changes to the training config, as `section.key=value`."""
    step: Literal["own", "published"] = "own"
    """`published`: the step of the paper's training scripts. Weights by scipy's least_squares,
    called as they call it on gradients that carry the loss scale; the direction times 3; clipped
    to train.max_grad_norm. Their other settings, such as objectives.scale, are for `set`."""
    loss_scale: Annotated[float, Field(ge=1, le=2**24)] = 65536.0
    """For step=published: the fp16 loss scale that the scripts' gradients carry, a constant here
    whatever train.precision is. The default is where torch's GradScaler starts; 1 is a run in
    float32."""
    series: Annotated[str, Field(pattern=NAME, max_length=100)] | None = None
    """Arms of one series, such as a sweep of one setting, are joined by a line in the plot, in
    their order."""
    variant: bool = False
    """Not a contender: it varies one choice of another arm, and has a table of its own."""


class Drawn(Section):
    """The case of drawn people, and of a tiny SDXL that was fitted to others of them."""

    size: Annotated[int, Field(ge=64, le=1024, multiple_of=8)] = 128
    """Side of the pictures, in pixels."""
    count: Annotated[int, Field(ge=32, le=10**6)] = 512
    """People that the arms train on; the tiny SDXL is fitted to as many others."""
    model: PathText | None = None
    """The tiny SDXL of another study (its OUT/tiny-sdxl), in place of fitting one."""
    zoom: Annotated[float, Field(ge=0.25, le=4)] = 1.0
    """How much larger than usual the people are that the arms train on; the pictures stay."""
    detail: Annotated[int, Field(ge=1, le=8)] = 1
    """Draw them at this many times `size`, so that `data.crop: zoom` has something to show."""
    hands: Probability | None = None
    """Share of their pictures that may show hands; null: as it comes, in four of five."""
    cell: Literal[4, 8] = 8
    """Side of a latent cell of the tiny SDXL, in pixels. 8 is SDXL's; with 4 a hand of 16 pixels
    covers 4 x 4 cells."""
    blur: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Blur the faces and hands of the people that the tiny SDXL's UNet is fitted to, by this share
    of their boxes' longer sides: it then lacks the details that the arms train. 0.1 leaves shapes
    without eyes and fingers. 0: none."""
    vae_steps: Positive = 700
    """Steps in which the tiny SDXL's VAE is fitted, as in `fairhuman demo-model`."""
    unet_steps: Positive = 750
    """Steps in which its UNet is fitted."""
    judge_steps: Positive = 300
    """Steps in which the judge is fitted that counts faces and fingers in the pictures."""


class Case(Section):
    """One thing in which a case differs."""

    set: Annotated[list[Text], Field(max_length=1000)] = []
    """Changes to the training config, after those of the arm."""
    scale: dict[Name, Factor] = {}
    """Factors on the losses that the arm does not know of, such as {face: 10}: they multiply its
    objectives.scale."""
    zoom: Annotated[float, Field(ge=0.25, le=4)] = 1.0
    """As of `drawn`."""
    hands: Probability | None = None
    """As of `drawn`."""

    @property
    def drawn(self) -> dict[str, float | None]:
        """What it sets of `drawn`."""
        return self.model_dump(include={"zoom", "hands"}, exclude_unset=True)


class Pictures(Section):
    """What is drawn with each trained model."""

    count: Annotated[int, Field(ge=0, le=10**5)] = 32
    """Pictures per run; 0: none."""
    prompts: PathText | None = None
    """A text file, one prompt per line, of which the first `count` are taken; null: the captions
    of drawn people that no model has seen (needs the section `drawn`)."""
    steps: Annotated[int, Field(ge=1, le=1000)] = 25
    """Denoising steps per picture."""
    guidance: Guidance = 2.0
    """Scale of classifier-free guidance; 1: none."""
    lora_scales: Annotated[list[Factor], Field(max_length=20)] = []
    """Show what a LoRA draws at these strengths too, beside its full one."""


class Study(Section):
    """A whole study."""

    train: PathText
    """The training config that all arms share. Its data and model are replaced by `drawn`."""
    set: Annotated[list[Text], Field(max_length=1000)] = []
    """Changes to it that all arms share, as `section.key=value`."""
    output_dir: PathText
    """The folder for runs, tables and the page."""
    arms: Annotated[dict[ArmName, Arm], Field(min_length=2, max_length=1000)]
    """The ways to train that are compared, by name; at least two."""
    cases: Annotated[dict[ArmName, Case], Field(max_length=1000)] = {}
    """Train all arms in each of these cases, by name, instead of once: a study each, in a folder of
    output_dir, and a table of all."""
    reference: ArmName = "exact"
    """The arm whose compute the others are given in the second comparison."""
    steps: Positive
    """Optimizer steps of the first comparison, the same in every arm."""
    seeds: Annotated[list[Seed], Field(min_length=1, max_length=1000)] = [0, 1, 2]
    """Each is a run's train.seed: the order of the data, the noise, and what is held out."""
    measure_every: Positive = 10
    """Steps between two measurements of what is held out."""
    drawn: Drawn | None = None
    """Settings of the case of drawn people; null: the config's own data and model."""
    pictures: Pictures = Pictures()
    """Settings of the pictures that are drawn with each trained model."""
    same_compute: bool = True
    """Also compare the arms with the reference's compute: most of them then run longer. Where the
    learning rate decays, these are runs of their own, each with its whole schedule."""
    line: Annotated[str, Field(pattern=NAME, max_length=100)] | None = None
    """A series of arms with fixed weights. Every other arm's distance from the line through them is
    measured: how much better or worse the whole image is where a region gains as much."""
    ranks: Annotated[int, Field(ge=1, le=1024)] = 1
    """Ranks of each run; more than one are started by DeepSpeed's launcher."""
    jobs: Annotated[int, Field(ge=1, le=1024)] = 1
    """Runs at a time; on GPUs leave it at 1."""
    keep_models: bool = False
    """Keep OUT/runs/…/final and the last checkpoint of every run, once its pictures are drawn."""

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("a seed is named twice")
        return seeds


def load_study(path: Path, overrides: Sequence[str] = ()) -> Study:
    """Read a study, apply `key=value` overrides, and check it; arms are checked as they are made.

    Raises:
        ConfigError: every problem found, one line each.
    """
    path = config_file(path)
    tree = read_yaml(path)
    if "arms" not in tree:
        raise ConfigError(
            f"{shown_key(path)}: is no study, for it names no `arms`; see configs/study.yaml"
        )
    for override in overrides:
        apply_override(tree, override, Study)
    study = validate(Study, tree, path)
    problems = []
    if study.reference not in study.arms:
        problems.append(
            f"reference = {shown(study.reference)}: is none of the arms {', '.join(study.arms)}"
        )
    series = [arm.series for arm in study.arms.values()]
    if study.line is not None and series.count(study.line) < 2:
        problems.append(
            f"line = {shown(study.line)}: needs two or more arms with `series: {study.line}`"
        )
    if study.steps % study.measure_every:
        problems.append(
            f"steps = {study.steps}: must be a multiple of measure_every = {study.measure_every}"
        )
    if study.pictures.count and not (study.drawn or study.pictures.prompts):
        problems.append(
            "pictures.prompts: is missing; name a text file, or set pictures.count to 0"
        )
    if study.drawn and study.drawn.model:
        fitting = {"cell", "blur", "vae_steps", "unet_steps"} & study.drawn.model_fields_set
        problems += [
            f"drawn.{key}: is of a model to be fitted, and drawn.model names one; remove either"
            for key in sorted(fitting)
        ]
    problems += _case_problems(study)
    if problems:
        raise refusal(path, problems)
    return study


def _case_problems(study: Study) -> list[str]:
    if study.drawn and study.cases and not study.drawn.model:
        return [
            "drawn.model: is missing; the cases start from one model, so name the tiny-sdxl of "
            "another study"
        ]
    drawn = [name for name, case in study.cases.items() if case.drawn]
    if drawn and not study.drawn:
        return [
            f"cases.{drawn[0]}: zoom and hands are of drawn people; remove them, or add `drawn`"
        ]
    return []


def study_schema() -> dict[str, Any]:
    """Return the JSON schema of a study."""
    return json_schema(Study, "FairHuman study")
