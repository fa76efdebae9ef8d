"""`fairhuman study`: run what is missing, measure, and write the outcome."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from fairhuman.common.errors import ConfigError
from fairhuman.common.files import replacing, write_text
from fairhuman.common.lock import FolderLock
from fairhuman.common.quiet import quiet
from fairhuman.config.prompt_file import read_prompts
from fairhuman.evaluation.study.cases import cases_table, studies
from fairhuman.evaluation.study.contact_sheet import opened, sheet
from fairhuman.evaluation.study.detection import Onlooker
from fairhuman.evaluation.study.drawn_case import DrawnCase
from fairhuman.evaluation.study.outcome import Outcome, Result, read_result, scales
from fairhuman.evaluation.study.page import as_tree, standalone, study_page, tradeoff
from fairhuman.evaluation.study.plan import Drawn, Study
from fairhuman.evaluation.study.run_trial import PICTURES, draw, pictures_at
from fairhuman.evaluation.study.runner import Runner
from fairhuman.evaluation.study.tables import tables
from fairhuman.evaluation.study.trials import Trial, make_trials
from fairhuman.models.generate import Source
from fairhuman.report.history import read_run

FACTORS = (1.0, 0.1, 0.01, 0.001)
"""On the gradients, for the published solver."""
START_PICTURES = "start"
ROWS = 6
"""Prompts on the sheet of pictures."""


def study(plan: Study, say: Callable[[str], None] = print) -> list[Path]:
    """Run a study to its end; return the files that hold its outcome.

    Runs that are there already, with the same settings, are kept.

    Raises:
        UserError: it cannot be run, another process runs it, or a run has failed.
    """
    prepared = [_prepared(one) for one in studies(plan).values() or [plan]]
    with FolderLock(Path(plan.output_dir), "study"):
        if not plan.cases:
            return _run(*prepared[0], say)[1]
        found, made = {}, []
        for name, parts in zip(plan.cases, prepared, strict=True):
            say(f"case {name}:")
            found[name], written = _run(*parts, say)
            made += [path for path in written if path.name == "study.html"]
        table = Path(plan.output_dir) / "cases.md"
        write_text(table, f"{cases_table(found).markdown()}\n")
        return [table, *made]


class _Prepared(NamedTuple):
    """A study that can be run."""

    plan: Study
    trials: list[Trial]
    asked: list[str]
    drawn_case: DrawnCase | None


def _prepared(plan: Study) -> _Prepared:
    """Check a study before anything is made."""
    output = Path(plan.output_dir)
    drawn_case = DrawnCase(output, plan.drawn, plan.pictures.count) if plan.drawn else None
    if drawn_case:
        drawn_case.check()
    trials = make_trials(plan, drawn_case.overrides() if drawn_case else [])
    return _Prepared(plan, trials, _prompts(plan, drawn_case), drawn_case)


def _run(
    plan: Study,
    trials: list[Trial],
    asked: list[str],
    drawn_case: DrawnCase | None,
    say: Callable[[str], None],
) -> tuple[Outcome, list[Path]]:
    started = time.monotonic()
    output = Path(plan.output_dir)
    quiet()
    if drawn_case:
        drawn_case.make()
    prompts = output / "prompts.txt" if asked else None
    if prompts:
        write_text(prompts, "".join(f"{line}\n" for line in asked))
    say(f"{len(trials)} runs: arms {', '.join(plan.arms)}; seeds {', '.join(map(str, plan.seeds))}")
    Runner(plan, prompts, say).run(trials)
    start = output / START_PICTURES
    if asked and len(opened(start)) != len(asked):
        pictures = plan.pictures
        model = trials[0].config.model.pretrained
        draw(Source(model), start, asked, pictures.steps, pictures.guidance)
    outcome = measure(plan, trials, drawn_case, say)
    made = write(plan, outcome, trials, drawn_case)
    say(f"done in {(time.monotonic() - started) / 60:.0f} min")
    return outcome, made


def measure(
    plan: Study, trials: list[Trial], drawn_case: DrawnCase | None, say: Callable[[str], None]
) -> Outcome:
    """Read what the runs have come to, and look at their pictures."""
    onlooker = Onlooker(drawn_case, say) if plan.pictures.count else None
    results: dict[str, list[Result]] = {name: [] for name in plan.arms}
    for trial in trials:
        if "steps" not in trial.compared:
            continue  # read with the arm's other run of this seed
        look = onlooker.look(opened(trial.folder / PICTURES)) if onlooker else None
        runs = [one for one in trials if (one.arm, one.seed) == (trial.arm, trial.seed)]
        results[trial.arm].append(read_result(runs, look))
    series: dict[str, list[str]] = {}
    for name, arm in plan.arms.items():
        if arm.series is not None:
            series.setdefault(arm.series, []).append(name)
    references = {}
    if onlooker:
        references = onlooker.references(opened(Path(plan.output_dir) / START_PICTURES))
    first = {trial.arm: trial for trial in reversed(trials)}
    reference = read_run(first[plan.reference].folder)
    return Outcome(
        names=reference.names,
        marks={name: first[name].marks for name in plan.arms},
        forwards={name: first[name].forwards for name in plan.arms},
        results=results,
        variants=[name for name, arm in plan.arms.items() if arm.variant],
        reference=plan.reference,
        compared=["steps", "compute"] if plan.same_compute else ["steps"],
        series=series,
        line=plan.line,
        references=references,
        scales=scales(reference, FACTORS),
    )


def write(
    plan: Study, found: Outcome, trials: list[Trial], drawn_case: DrawnCase | None
) -> list[Path]:
    """Write the outcome: results.json, study.md, study.html, the plots and the pictures."""
    output = Path(plan.output_dir)
    shown = tables(found)
    said = setting(plan, trials[0])
    paths = {name: output / name for name in ("study.md", "study.html", "results.json")}
    for name in found.names[1:]:
        plot = output / f"tradeoff-{name}.svg"
        write_text(plot, standalone(tradeoff(found, name)))
        paths[plot.name] = plot
    pictures = None
    if plan.pictures.count:
        pictures = paths["pictures.png"] = output / "pictures.png"
        with replacing(pictures) as aside:
            _sheet(plan, trials, drawn_case).save(aside, "png")
    body = "\n\n".join(part.markdown() for part in shown)
    write_text(paths["study.md"], f"{said}\n\n{body}\n")
    write_text(paths["results.json"], json.dumps(_plain(as_tree(found)), indent=1) + "\n")
    write_text(paths["study.html"], study_page(found, shown, pictures, said))
    return list(paths.values())


def setting(plan: Study, trial: Trial) -> str:
    """Return what was trained and where, in a few sentences."""
    config = trial.config
    roots = " and ".join(source.root for source in config.data.named_sources.values())
    data = _drawn(plan.drawn) if plan.drawn else f"{roots}, from {config.model.pretrained}"
    return (
        f"{len(plan.arms)} arms, seeds {', '.join(map(str, plan.seeds))}, trained on {data}. "
        f"{config.data.validation} images held out per seed, the same in every arm. "
        f"Batch {config.train.batch_size * config.train.gradient_accumulation * plan.ranks}, "
        f"{config.optimizer.name}, learning rate {config.optimizer.lr:g}, "
        f"{config.optimizer.schedule}, "
        f"{config.train.precision}. {_machine(trial)}, {plan.jobs} runs at a time, "
        f"{time.strftime('%Y-%m-%d')}."
    )


def _drawn(drawn: Drawn) -> str:
    people = f"{drawn.count} drawn people at {drawn.size} px"
    if drawn.detail > 1:
        people += f" of {drawn.size * drawn.detail}"
    if drawn.zoom != 1:
        people += f", {drawn.zoom:g} times their usual size"
    if drawn.hands is not None:
        people += f", {drawn.hands:.0%} of them with hands"
    if drawn.model:
        return f"{people}, from {drawn.model}"
    cells = drawn.size // drawn.cell
    blurred = " with blurred faces and hands" if drawn.blur else ""
    return (
        f"{people}, {cells} x {cells} latents, from a tiny SDXL that was fitted to as many "
        f"others{blurred}"
    )


def _machine(trial: Trial) -> str:
    """Return what a run was trained on."""
    found = read_run(trial.folder).environment
    devices = ", ".join(f"{count} x {name}" for name, count in found["devices"].items())
    return devices if found["cuda"] else f"{os.cpu_count()} CPU cores"


def _prompts(plan: Study, drawn_case: DrawnCase | None) -> list[str]:
    pictures = plan.pictures
    if not pictures.count:
        return []
    if pictures.prompts is None:
        assert drawn_case
        return drawn_case.prompts()
    found = read_prompts(Path(pictures.prompts))[: pictures.count]
    if not found:
        raise ConfigError(f"pictures.prompts = {pictures.prompts!r}: the file has no prompt")
    return found


def _sheet(plan: Study, trials: list[Trial], drawn_case: DrawnCase | None) -> Image.Image:
    output = Path(plan.output_dir)
    columns: list[tuple[str, list[Image.Image]]] = []
    if drawn_case:
        columns.append(("drawn (never seen)", [sample.image for sample in drawn_case.asked]))
    columns.append(("start", opened(output / START_PICTURES)))
    for trial in trials:
        if trial.seed == plan.seeds[0] and "steps" in trial.compared:
            columns += columns_of(trial, plan.pictures.lora_scales)
    return sheet(columns, min(ROWS, len(columns[0][1])))


def columns_of(
    trial: Trial, lora_scales: Sequence[float]
) -> Iterator[tuple[str, list[Image.Image]]]:
    """Yield what a run has drawn: a LoRA at rising strengths."""
    if trial.config.model.method != "lora" or not lora_scales:
        yield trial.arm, opened(trial.folder / PICTURES)
        return
    for scale in sorted({1.0, *lora_scales}):
        yield f"{trial.arm} x {scale:g}", opened(trial.folder / pictures_at(scale))


def _plain(tree: Any) -> Any:
    """Return a tree without NaN, which JSON has not."""
    if isinstance(tree, dict):
        return {key: _plain(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_plain(value) for value in tree]
    return None if isinstance(tree, float) and tree != tree else tree
