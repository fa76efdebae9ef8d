"""What a study compares: a training config, its arms and seeds, and how they are measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from fairhuman.config import Count, Positive
from fairhuman.errors import ConfigError
from fairhuman.settings import Section, apply_override, read_yaml, validate

NAME = r"^[A-Za-z0-9][A-Za-z0-9 .,+=()x-]*$"


class Arm(Section):
    """One way to train."""

    set: list[str] = []
    """Its changes to the training config, as `section.key=value`."""
    solver: Literal["own", "published"] = "own"
    """`published`: weights by scipy's least_squares, called as the paper's code calls it."""
    variant: bool = False
    """It is no contender: it varies one choice of another arm, and is told apart in the tables."""


class Drawn(Section):
    """The small case: drawn people, and a tiny SDXL that was fitted to others of them."""

    size: Annotated[int, Field(ge=64, multiple_of=8)] = 128
    """Side of the pictures, in pixels."""
    count: Annotated[int, Field(ge=32)] = 512
    """People that the arms train on; as many others have made the tiny SDXL."""
    vae_steps: Positive = 700
    unet_steps: Positive = 750
    """Of the tiny SDXL's fit, as in `fairhuman demo-model`."""
    judge_steps: Positive = 300
    """Of the fit of the judge that looks for faces and fingers in the pictures."""


class Pictures(Section):
    """What is drawn with each trained model."""

    count: Count = 32
    """Pictures per run; 0: none."""
    prompts: str | None = None
    """A text file, one prompt per line, of which the first `count` are taken; null: the captions
    of drawn people that no model has seen (needs the section `drawn`)."""
    steps: Positive = 25
    guidance: Annotated[float, Field(ge=1)] = 2.0


class Study(Section):
    """A whole study."""

    train: str
    """The training config that all arms share. Its data and model are replaced by `drawn`."""
    set: list[str] = []
    """Changes to it, for all arms alike."""
    output_dir: str
    arms: Annotated[dict[Annotated[str, Field(pattern=NAME)], Arm], Field(min_length=2)]
    reference: str = "exact"
    """The arm whose compute the others are given in the second comparison."""
    steps: Positive
    """Optimizer steps of the first comparison, the same in every arm."""
    seeds: Annotated[list[Count], Field(min_length=1)] = [0, 1, 2]
    """Each is a run's train.seed: the order of the data, the noise, and what is held out."""
    measure_every: Positive = 10
    """Steps between two measurements of what is held out."""
    drawn: Drawn | None = None
    """Null: the config's own data and model."""
    pictures: Pictures = Pictures()
    ranks: Positive = 1
    """Of each run; more than one are started by DeepSpeed's launcher."""
    jobs: Positive = 1
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
    tree = read_yaml(path)
    if "arms" not in tree:
        raise ConfigError(f"{path}: is no study, for it names no `arms`; see configs/study.yaml")
    for override in overrides:
        apply_override(tree, override)
    study = validate(Study, tree, path)
    problems = []
    if study.reference not in study.arms:
        problems.append(
            f"reference = {study.reference!r}: is none of the arms {', '.join(study.arms)}"
        )
    if study.steps % study.measure_every:
        problems.append(
            f"steps = {study.steps}: must be a multiple of measure_every = {study.measure_every}"
        )
    if study.pictures.count and not (study.drawn or study.pictures.prompts):
        problems.append(
            "pictures.prompts: is missing; name a text file, or set pictures.count to 0"
        )
    if problems:
        raise ConfigError("\n".join(f"{path}: {line}" for line in problems))
    return study
