"""`fairhuman compare`: the same pictures by several steps of a run, on one page."""

from __future__ import annotations

import html
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairhuman.common.errors import UserError
from fairhuman.common.files import write_text
from fairhuman.common.images import open_image
from fairhuman.common.pixels import data_uri
from fairhuman.common.run_folder import BEST, CONFIG, EXPORTS, FINAL, STEPS
from fairhuman.config import Config, SamplePrompt, load_config
from fairhuman.models.generate import Sampling, Source, generate
from fairhuman.report.parts import Html, page, section, table

BASE = "base"
"""The model that the run started from."""
_SIDE = 512
"""The longest side of a picture on the page, in pixels."""


@dataclass(frozen=True)
class Asked:
    """What to draw."""

    steps: tuple[str, ...] = ()
    """Numbers of steps, `best`, `final` and `base`; empty: all exports and OUT/final."""
    prompts: tuple[SamplePrompt, ...] = ()
    """Empty: the run's train.sample_prompts."""
    seeds: tuple[int, ...] = ()
    """Of each prompt; empty: its own, or one for each prompt."""
    scales: tuple[float, ...] = ()
    """Strengths of the LoRA; empty: each prompt's own, or 1."""
    batch_size: int = 4
    """Pictures at a time."""


def compare_steps(run: Path, asked: Asked, out: Path) -> Path:
    """Draw with several steps of a run and write the page; return where it is.

    Rows are prompts and seeds, columns are steps and strengths.

    Args:
        run: train.output_dir of a run.
        asked: what to draw.
        out: the page to write.

    Raises:
        UserError: the run has no such step, or nothing is to be drawn; before a model is loaded.
        OutputError: the page cannot be written.
    """
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out {out}: must end in .html")
    if not (run / CONFIG).is_file():
        raise UserError(f"{run}: holds no {CONFIG}; give train.output_dir of a run")
    config = load_config(run / CONFIG)
    sources = _sources(run, config, asked.steps)
    if asked.scales and config.model.method != "lora":
        raise UserError(
            f"--lora-scales: {run} trained no LoRA (model.method={config.model.method})"
        )
    rows = _rows(config, asked)
    columns: list[str] = []
    cells: list[list[Html]] = [[] for _ in rows]
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, source) in enumerate(sources):
            scales = list(asked.scales) if source.lora and asked.scales else [None]
            prompts = [_scaled(row, scale, source) for scale in scales for row in rows]
            sampling = Sampling(batch_size=asked.batch_size)
            paths = generate(source, prompts, Path(folder) / str(number), sampling)
            for place, scale in enumerate(scales):
                columns.append(name if scale is None else f"{name}, LoRA x {scale:g}")
                part = paths[place * len(rows) : (place + 1) * len(rows)]
                for row, path in zip(cells, part, strict=True):
                    row.append(_picture(path, columns[-1]))
    named = [[_label(row), *found] for row, found in zip(rows, cells, strict=True)]
    sheet = section("Pictures", table(["", *columns], named))
    lead = f"{config.model.method}, {len(rows)} rows of one prompt and seed each"
    write_text(out, page(f"{run.resolve().name}: steps compared", [sheet], lead=lead))
    return out


def exported(run: Path) -> dict[str, Path]:
    """Return what a run has exported, by the names that steps are asked for."""
    found = {str(int(path.name[5:])): path for path in sorted((run / EXPORTS).glob(STEPS))}
    for name, path in ((BEST, run / EXPORTS / BEST), (FINAL, run / FINAL)):
        if path.is_dir():
            found[name] = path
    return found


def _sources(run: Path, config: Config, steps: Sequence[str]) -> list[tuple[str, Source]]:
    known = exported(run)
    if not known:
        raise UserError(
            f"{run}: has exported nothing; train with train.export_every, such as 500 steps"
        )
    wanted = list(steps) or [name for name in known if name != BEST]
    found = []
    for name in dict.fromkeys(wanted):
        if name != BASE and name not in known:
            raise UserError(
                f"--steps {name}: {run / EXPORTS} has no such step; there are "
                f"{', '.join([*known, BASE])}"
            )
        found.append((_named(name, known), _source(config, known.get(name))))
    return found


def _named(name: str, known: dict[str, Path]) -> str:
    if name == BEST:
        return f"{BEST} (step {int(known[name].resolve().name[5:])})"
    return name if name in (BASE, FINAL) else f"step {name}"


def _source(config: Config, folder: Path | None) -> Source:
    """Return the model of an export; None: of the base."""
    model, method = config.model, config.model.method
    base: dict[str, Any] = {"model": model.pretrained, "config": model.config}
    if folder is None:
        return Source(**base)
    return {
        "full": lambda: Source(str(folder)),
        "lora": lambda: Source(**base, lora=folder),
        "controlnet": lambda: Source(**base, controlnet=str(folder)),
        "t2i_adapter": lambda: Source(**base, adapter=str(folder)),
    }[method]()


def _rows(config: Config, asked: Asked) -> list[SamplePrompt]:
    """Return the prompts, each with all of its settings but the strength."""
    train = config.train
    prompts = list(asked.prompts or train.sample_prompts)
    if not prompts:
        raise UserError("--prompts: the run has no train.sample_prompts; give a file of prompts")
    first = train.seed if train.sample_seed is None else train.sample_seed
    side = config.data.resolution
    defaults = {
        "negative": train.sample_negative,
        "size": train.sample_size or (side, side),
        "steps": train.sample_steps,
        "guidance": train.sample_guidance,
    }
    rows = []
    for number, prompt in enumerate(prompts):
        own = {key: value for key, value in defaults.items() if getattr(prompt, key) is None}
        seeds = asked.seeds or (first + number if prompt.seed is None else prompt.seed,)
        rows += [prompt.model_copy(update={**own, "seed": seed}) for seed in seeds]
    return rows


def _scaled(row: SamplePrompt, scale: float | None, source: Source) -> SamplePrompt:
    """Return a row as a model draws it: the base has no LoRA, and no control images."""
    own: dict[str, Any] = {} if scale is None else {"lora_scale": scale}
    if source.lora is None:
        own["lora_scale"] = None
    if not (source.controlnet or source.adapter):
        own["control"] = None
    return row.model_copy(update=own)


def _label(row: SamplePrompt) -> str:
    return f"{row.prompt} (seed {row.seed})"


def _picture(path: Path, column: str) -> Html:
    picture = open_image(path)
    picture.thumbnail((_SIDE, _SIDE))
    return Html(f'<img src="{data_uri(picture, 90)}" alt="{html.escape(column)}">')
