"""The runs of a study: every arm with every seed, each a training config of its own."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from fairhuman.common.errors import ConfigError, DataError
from fairhuman.config import Config, load_config
from fairhuman.data.index.load import open_listings
from fairhuman.evaluation.study.plan import Arm, Study
from fairhuman.planning.plan import Plan

STAMP = "trial.json"
FORM = 2
"""Of what a run leaves: one of another form is made again."""


@dataclass(frozen=True)
class Marks:
    """After how many steps an arm is compared; both are multiples of `measure_every`."""

    steps: int
    """The same in every arm."""
    compute: int
    """Where it has had the reference arm's compute, as near as `measure_every` lets it be."""

    def at(self, mark: str) -> int:
        """Return the steps at `steps` or at `compute`."""
        return self.steps if mark == "steps" else self.compute


@dataclass(frozen=True)
class Trial:
    """One run."""

    arm: str
    seed: int
    config: Config
    published: float | None
    """The loss scale of the published step; None: the trainer's own step."""
    marks: Marks
    compared: tuple[str, ...]
    """At which of the marks this run is compared; where the learning rate decays, at its end."""
    forwards: float
    """Compute of a step, in forward passes of a micro-batch."""

    @property
    def folder(self) -> Path:
        """Return where it writes."""
        return Path(self.config.train.output_dir)

    def digest(self, others: dict[str, Any]) -> str:
        """Return a digest of all that its outcome depends on; one with another is not reused."""
        settings = self.config.model_dump(mode="json", exclude_defaults=True)
        del settings["train"]["output_dir"]
        told = {
            "form": FORM,
            "version": metadata.version("fairhuman"),
            "config": settings,
            "published": self.published,
            "compared": {mark: self.marks.at(mark) for mark in self.compared},
            "data": _rows_digest(self.config),
            "model": _files(Path(self.config.model.pretrained)),
            **others,
        }
        text = json.dumps(told, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def make_trials(study: Study, overrides: Sequence[str] = ()) -> list[Trial]:
    """Return all runs of a study, the first seed's first.

    Args:
        study: checked by itself.
        overrides: of the training config, before those of the study.

    Raises:
        ConfigError: an arm cannot be trained, named with the reason.
    """
    unit = _forwards(_config(study, study.reference, overrides))
    found = []
    for name, arm in study.arms.items():
        plain = _config(study, name, overrides)
        _check(study, name, arm, plain)
        forwards = _forwards(plain)
        every = study.measure_every
        compute = max(1, round(study.steps * unit / forwards / every)) * every
        marks = Marks(study.steps, compute)
        published = arm.loss_scale if arm.step == "published" else None
        for compared in _runs(study, plain, marks):
            last = max(marks.at(mark) for mark in compared)
            tail = "" if "steps" in compared else "-compute"
            for seed in study.seeds:
                folder = _folder(study, name) / f"seed-{seed}{tail}"
                config = _config(
                    study,
                    name,
                    overrides,
                    [
                        f"train.output_dir={folder}",
                        f"train.seed={seed}",
                        f"train.steps={last}",
                        f"train.validate_every={every}",
                        "train.sample_every=0",
                        "train.push_to_hub=null",
                        "train.push_checkpoints=false",
                        "train.keep_checkpoints=1",
                        "train.resume=auto",
                    ],
                )
                found.append(Trial(name, seed, config, published, marks, compared, forwards))
    return sorted(found, key=lambda trial: study.seeds.index(trial.seed))


def _runs(study: Study, config: Config, marks: Marks) -> list[tuple[str, ...]]:
    """Return the marks that each run of an arm serves: one run all, if its rate is constant."""
    if not study.same_compute:
        return [("steps",)]
    if config.optimizer.schedule == "constant" or marks.steps == marks.compute:
        return [("steps", "compute")]
    return [("steps",), ("compute",)]


def _config(study: Study, name: str, before: Sequence[str], fixed: Sequence[str] = ()) -> Config:
    """Return an arm's training config, its own changes between those of all arms."""
    try:
        return load_config(study.train, [*before, *study.set, *study.arms[name].set, *fixed])
    except ConfigError as error:
        lines = str(error).split("\n")
        raise ConfigError("\n".join(f"arm {name!r}: {line}" for line in lines)) from None


def _check(study: Study, name: str, arm: Arm, config: Config) -> None:
    problems = []
    if not config.data.validation:
        problems.append(
            "data.validation = 0: nothing is held out to measure; set a number of images"
        )
    if study.pictures.count and config.model.conditioned:
        problems.append(
            f"model.method = {config.model.method!r}: its pictures want control images; set the "
            "study's pictures.count to 0"
        )
    fairness = config.fairness
    of_its_own = fairness.floor or fairness.keep or fairness.rule != "mpd"
    if arm.step == "published" and (fairness.mode != "exact" or of_its_own):
        problems.append(
            "step = 'published': needs fairness.mode=exact, fairness.rule=mpd, fairness.floor=0 "
            "and fairness.keep=0"
        )
    if problems:
        raise ConfigError("\n".join(f"arm {name!r}: {problem}" for problem in problems))


def _forwards(config: Config) -> float:
    plan = Plan(
        parameters=1,
        ranks=1,
        stage=2,
        mode=config.fairness.mode,
        objectives=1 + len(config.objectives.regions),
        micro_batches=config.train.gradient_accumulation,
        recomputes=config.model.gradient_checkpointing,
    )
    return plan.forwards_of_compute(config.fairness.every)


def _folder(study: Study, name: str) -> Path:
    return Path(study.output_dir) / "runs" / re.sub(r"[^A-Za-z0-9.=+-]+", "-", name)


def _rows_digest(config: Config) -> str | list[str] | None:
    """Return what the rows of the data sets are known by; None where there are none yet."""
    try:
        found = [listing.store.identity().digest for listing in open_listings(config).values()]
    except DataError:  # the run itself says what is wrong
        return None
    return found[0] if len(found) == 1 else found


def _files(folder: Path) -> list[Any]:
    """Return names, sizes and times of a local model's files: its gigabytes are not read."""
    paths = sorted(folder.rglob("*")) if folder.is_dir() else [folder]
    return [
        [path.name, path.stat().st_size, path.stat().st_mtime_ns]
        for path in paths
        if path.is_file()
    ]
