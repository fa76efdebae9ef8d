"""The page of one run: OUT/report.html."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from fairhuman.common.redact import redacted
from fairhuman.common.run_folder import CONFIG, SAMPLES
from fairhuman.report import figures
from fairhuman.report.chart import Data
from fairhuman.report.gallery import chosen, gallery
from fairhuman.report.history import History
from fairhuman.report.parts import (
    Html,
    code,
    folded,
    label,
    number,
    page,
    section,
    table,
    text,
    tiles,
)
from fairhuman.report.since_start import change_text


def run_page(run: History) -> Html:
    """Return a run's page.

    Raises:
        UserError: one of its pictures cannot be read.
    """
    data = Data([run])
    return page(run.name, list(_sections(run, data)), data.tree, lead=_lead(run))


def headlines(run: History) -> list[tuple[str, str, str]]:
    """Return a run's headline figures: what, the figure, more about it."""
    wanted = run.setting("train.steps")
    found = [("steps", str(run.steps[-1]), f"of {wanted}" if wanted else "")]
    for name in run.names:
        change, error = figures.last_change(run, name)
        if change is not None:
            found.append(
                (f"held out, {label(name)}", change_text(change, error), "since the start")
            )
    for name in run.names:
        points = run.points(f"loss/{name}")
        if points:
            more = "" if points[-1][0] == run.steps[-1] else f"at step {points[-1][0]}"
            found.append((f"last loss, {label(name)}", number(points[-1][1]), more))
    best = best_step(run)
    if best:
        key, step, value = best
        kept = run.setting("train.keep_best") == key
        what = "best checkpoint" if kept else "best held-out step"
        found.append((what, str(step), f"{key} = {number(value)}"))
    skipped = figures.skipped_steps(run)
    found.append(("skipped steps", str(len(skipped)), f"of {len(run.points('skipped'))}"))
    speeds = [value for _, value in run.points("samples_per_s")]
    if speeds:
        tail = speeds[len(speeds) // 10 :]  # the first steps warm up
        found.append(("samples/s", number(sum(tail) / len(tail)), "mean without the first tenth"))
    return found


def best_step(run: History) -> tuple[str, int, float] | None:
    """Return key, step and value of the lowest of train.keep_best, or of the whole image's."""
    key = run.setting("train.keep_best") or "val/loss/global"
    kept = run.setting("train.keep_best") is not None
    points = [point for point in run.points(key) if point[0] > 0 or not kept]
    if not points:
        return None
    step, value = min(points, key=lambda point: point[1])
    return key, step, value


def _lead(run: History) -> str:
    model = redacted(run.config).get("model", {})
    parts = [
        f"method {model['method']} on {model['pretrained']}" if "method" in model else "",
        f"weights by fairness.mode={mode}" if (mode := run.setting("fairness.mode")) else "",
        f"fairness.rule={rule}" if (rule := run.setting("fairness.rule") or "mpd") != "mpd" else "",
        f"{ranks} ranks" if (ranks := run.environment.get("ranks", 0)) > 1 else "",
    ]
    return ", ".join(filter(None, parts))


def _sections(run: History, data: Data) -> Iterator[Html]:
    yield tiles(headlines(run))
    yield figures.losses(run, data)
    yield from figures.validation(run, data)
    yield figures.balance(run, data)
    yield from figures.progress(run, data)
    yield figures.conflicts(run, data)
    if run.sheets:
        yield _samples(run)
    yield figures.solver(run, data)
    yield figures.times(run, data)
    if run.environment:
        yield section("Environment", environment_table(run))
    if run.config:
        shown = yaml.safe_dump(redacted(run.config), sort_keys=False, allow_unicode=True)
        words = f"Paths are cut to their last part; OUT/{CONFIG} has them."
        yield section("Config", folded(CONFIG, code(shown)), note=words)


def _samples(run: History) -> Html:
    shown = chosen(run.sheets)
    prompts = run.setting("train.sample_prompts") or []
    listed = (
        [folded("The prompts", Html("".join(text(_prompt(p)) for p in prompts)))] if prompts else []
    )
    left = len(run.sheets) - len(shown)
    note = f"{left} sheets in between are in OUT/{SAMPLES}." if left else ""
    return section(
        "Samples",
        gallery((f"step {step}", path) for step, path in shown),
        *listed,
        note=note,
    )


def _prompt(asked: Any) -> str:
    """Return a prompt with what is set of its own."""
    if not isinstance(asked, dict):
        return str(asked)
    own = [f"{key} {value}" for key, value in asked.items() if key not in ("prompt", "control")]
    return f"{asked.get('prompt', '')} ({', '.join(own)})" if own else str(asked.get("prompt", ""))


def environment_table(run: History) -> Html:
    """Return what the run was made with."""
    rows: list[tuple[str, str]] = []
    for key, value in run.environment.items():
        if key == "devices":
            value = ", ".join(f"{count} x {name}" for name, count in value.items())
        elif key == "packages":
            rows += [(name, str(version)) for name, version in value.items()]
            continue
        elif isinstance(value, list):
            value = " ".join(map(str, value)) or "none"
        rows.append((key, "–" if value is None else str(value)))
    return table(["", "value"], rows, "At the last start")
