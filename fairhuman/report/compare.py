"""The page that compares runs: the same charts with one line per run, and how the runs differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fairhuman.common.redact import redacted
from fairhuman.config import change_keys
from fairhuman.report import figures
from fairhuman.report.bars import share_below
from fairhuman.report.chart import Data, Line, lines
from fairhuman.report.gallery import gallery
from fairhuman.report.history import History, names_of
from fairhuman.report.parts import Html, label, page, section, table, text
from fairhuman.report.run_page import headlines
from fairhuman.report.unlike import unlike

_COLOURS = 8


def comparison(runs: Sequence[History]) -> Html:
    """Return the page of two or more runs.

    Raises:
        UserError: a picture cannot be read.
    """
    data, names = Data(runs), names_of(runs)
    title = " / ".join(names)
    return page(title, list(_sections(runs, names, data)), data.tree, lead=f"{len(runs)} runs")


def differences(trees: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Any]]]:
    """Return the keys, as section.key, whose values are not the same in all, with the values.

    None stands for a key that is not there.
    """
    flat = [_flat(tree) for tree in trees]
    keys = dict.fromkeys(key for tree in flat for key in tree)
    rows = [(key, [tree.get(key) for tree in flat]) for key in keys]
    return [(key, values) for key, values in rows if any(v != values[0] for v in values)]


def _sections(runs: Sequence[History], names: Sequence[str], data: Data) -> Iterator[Html]:
    if warnings := list(unlike(runs)):
        yield section("Not like for like", Html("".join(map(text, warnings))))
    yield section("Headlines", _headlines(runs, names))
    yield section("How the runs differ", _differences(runs, names))
    objectives = list(dict.fromkeys(name for run in runs for name in run.names))
    groups: list[tuple[str, list[tuple[str, str]], dict[str, Any]]] = [
        ("Losses", [(label(n), f"loss/{n}") for n in objectives], {}),
        ("Validation since the start", _changes(objectives), {"smoothed": False, "unit": "%"}),
        ("Validation", [(label(n), f"val/loss/{n}") for n in objectives], {"smoothed": False}),
        ("Validation by quarter of the timesteps", _quarters(objectives), {"smoothed": False}),
        ("Weights", [(label(n), f"weight/{n}") for n in objectives], {"log": True}),
        ("Gradient norms", [(label(n), f"grad_norm/{n}") for n in objectives], {"log": True}),
    ]
    for title, shown, options in groups:
        yield from _group(title, shown, names, data, options)
    pairs = list(dict.fromkeys(pair for run in runs for pair in figures.pairs_of(run)))
    conflicts = _conflicts(runs, names, pairs)
    yield from _group("Cosines", pairs, names, data, {"bounds": (-1, 1)}, conflicts)
    if any(run.sheets for run in runs):
        yield _samples(runs, names)
    shown = [("step", "step_time_s")]
    shown += [(key.removeprefix("time/"), key) for key in _keys(runs, "time/")]
    yield from _group("Seconds", shown, names, data, {"unit": "s"})
    rest = [("samples/s", "samples_per_s"), ("learning rate", "lr"), ("skipped", "skipped")]
    rest += [("peak memory of rank 0, GiB", "memory_gib")]
    yield from _group("The rest", rest, names, data, {"smoothed": False})


def _group(
    title: str,
    shown: Sequence[tuple[str, str]],
    names: Sequence[str],
    data: Data,
    options: dict[str, Any],
    *more: Html,
) -> Iterator[Html]:
    """Yield a section with a chart for each (label, key) that a run has."""
    charts = [
        lines(
            data,
            words,
            [Line(key, name, f"r-{i % _COLOURS}", i) for i, name in enumerate(names)],
            **options,
        )
        for words, key in shown
    ]
    drawn = [chart for chart in charts if chart]
    if drawn:
        yield section(title, *drawn, *more)


def _headlines(runs: Sequence[History], names: Sequence[str]) -> Html:
    found = [{what: (figure, more) for what, figure, more in headlines(run)} for run in runs]
    rows = []
    for what in dict.fromkeys(what for run in found for what in run):
        cells = [run.get(what, ("–", "")) for run in found]
        rows.append([what, *(f"{figure} ({more})" if more else figure for figure, more in cells)])
    return table(["", *names], rows)


def _differences(runs: Sequence[History], names: Sequence[str]) -> Html:
    rows: list[list[str]] = []
    for title, trees in (
        ("", [run.config for run in runs]),
        ("environment: ", [run.environment for run in runs]),
    ):
        for key, values in differences(trees):
            last = key.rpartition(".")[2]
            rows.append([title + key, *(_shown(last, value) for value in values)])
    return table(["key", *names], rows or [["none", *("" for _ in names)]])


def _shown(key: str, value: Any) -> str:
    value = redacted({key: value})[key]
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "–" if value is None else str(value)


def _conflicts(
    runs: Sequence[History], names: Sequence[str], pairs: Sequence[tuple[str, str]]
) -> Html:
    rows = [[words, *(share_below(run.column(key)) for run in runs)] for words, key in pairs]
    return table(["pair", *names], rows, "Share of steps with a negative cosine")


def _samples(runs: Sequence[History], names: Sequence[str]) -> Html:
    """Return the first and the last sheets that all runs have, or each run's own last."""
    sheets = [dict(run.sheets) for run in runs]
    common = sorted(set.intersection(*map(set, sheets)))
    steps = [common[0], common[-1]] if len(common) > 1 else common
    pictures = [
        (f"{name}, step {step}", found[step])
        for step in steps
        for name, found in zip(names, sheets, strict=True)
    ]
    if not pictures:
        pictures = [
            (f"{name}, step {max(found)}", found[max(found)])
            for name, found in zip(names, sheets, strict=True)
            if found
        ]
    return section("Samples", gallery(pictures))


def _changes(objectives: Sequence[str]) -> list[tuple[str, str]]:
    return [(label(name), change_keys(name)[0]) for name in objectives]


def _quarters(objectives: Sequence[str]) -> list[tuple[str, str]]:
    return [
        (f"{label(name)}, q{quarter}", f"val/loss/{name}/q{quarter}")
        for name in objectives
        for quarter in range(1, 5)
    ]


def _keys(runs: Sequence[History], prefix: str) -> list[str]:
    return list(dict.fromkeys(key for run in runs for key in run.keys(prefix)))


def _flat(tree: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{before}{key}.")
        else:
            found[f"{before}{key}"] = value
    return found
