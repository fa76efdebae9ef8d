"""The parts of a run's page: which numbers are shown together, and how."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fairhuman.config import change_keys
from fairhuman.report.bars import bar, share_below, strips
from fairhuman.report.chart import Data, Line, lines
from fairhuman.report.history import History
from fairhuman.report.parts import Html, colour, label, section, table

_KEPT = 16
_STATUS = {
    1: "an objective was absent",
    2: "exact conflict: solved with a ridge",
    4: "gradients not finite: skipped",
    8: "no Gram matrix: skipped",
    _KEPT: "turned towards the whole image (fairness.keep)",
}
_QUARTERS = ("q1", "q2", "q3", "q4")
_QUARTER_NAMES = ("q1: the least noise", "q2", "q3", "q4: the most noise")


def losses(run: History, data: Data) -> Html:
    """Return the training losses, a chart for each objective: their sizes are unlike."""
    charts = [
        lines(data, label(name), [Line(f"loss/{name}", label(name), colour(name, i))])
        for i, name in enumerate(run.names)
    ]
    numbers = numbers_table(run, [(label(name), f"loss/{name}") for name in run.names], "Losses")
    rate = lines(data, "Learning rate", [Line("lr", "learning rate", "c-plain")], smoothed=False)
    return section("Losses", *charts, numbers, rate, note=_not_finite(run, "loss"))


def balance(run: History, data: Data) -> Html:
    """Return the weights and the gradients' norms."""
    shown = [(name, colour(name, i)) for i, name in enumerate(run.names)]
    weights = [Line(f"weight/{name}", label(name), c) for name, c in shown]
    norms = [Line(f"grad_norm/{name}", label(name), c) for name, c in shown]
    norms.append(Line("grad_norm/update", "the step's gradient", "c-plain"))
    keys = [(f"weight: {label(name)}", f"weight/{name}") for name in run.names]
    keys += [(f"norm: {line.label}", line.key) for line in norms]
    return section(
        "Weights and gradients",
        lines(data, "Weights of the objectives", weights, log=True),
        lines(data, "Gradient norms", norms, log=True),
        numbers_table(run, keys, "Weights and gradient norms"),
        note=f"An absent objective has weight 0 and no norm. {_not_finite(run, 'grad_norm')}",
    )


def conflicts(run: History, data: Data) -> Html:
    """Return the cosines between gradients: which objectives fight, and when."""
    pairs = pairs_of(run)
    measured = [(name, key) for name, key in pairs if run.points(key)]
    if not measured:
        words = "The cosines between the objectives' gradients are not measured in this mode."
        if any(run.not_finite(f"grad_norm/{name}") for name in run.names):
            words = "There are no cosines: no gradients were finite where they were measured."
        return section("Who fights whom", note=words)
    begun = int(run.steps[0] == 0)  # the start has no gradients
    charts = [Line(key, name, f"c-{index % 4}") for index, (name, key) in enumerate(measured)]
    rows: list[list[str | float | None]] = []
    for name, key in measured:
        points = run.points(key)
        step, lowest = min(points, key=lambda point: point[1])
        share = share_below(run.column(key))
        rows.append([name, len(points), share, _mean(run, key), lowest, step])
    return section(
        "Who fights whom",
        lines(data, "Cosines between gradients", charts, bounds=(-1, 1)),
        strips(
            "Share of steps with a negative cosine",
            run.steps[begun:],
            [(name, run.column(key)[begun:]) for name, key in measured],
        ),
        table(["pair", "steps measured", "negative", "mean", "lowest", "at step"], rows, "Cosines"),
        note="Two objectives fight in a step if the cosine between their gradients is negative.",
    )


def progress(run: History, data: Data) -> list[Html]:
    """Return which way the steps went, and whose they were; nothing if that was not logged."""
    shown = [(name, i) for i, name in enumerate(run.names) if run.points(f"progress/{name}")]
    if not shown:
        return []
    cosines = [Line(f"progress/{n}", label(n), colour(n, i)) for n, i in shown]
    shares = [Line(f"share/{n}", label(n), colour(n, i)) for n, i in shown]
    rows: list[list[str | float | None]] = []
    for name, _ in shown:
        key = f"progress/{name}"
        against = sum(value < 0 for _, value in run.points(key))
        rows.append([label(name), _mean(run, f"share/{name}"), _mean(run, key), against])
    keep = run.setting("fairness.keep")
    statuses = [int(value) for value in run.column("solver/status") if value is not None]
    bounded = sum(bool(value & _KEPT) for value in statuses)
    words = "A step lowers a loss, to first order, if its cosine to that gradient is above 0."
    if keep or bounded:
        words += (
            f" fairness.keep turned {bounded} of {len(statuses)} steps towards the whole image."
        )
    return [
        section(
            "Where the steps go",
            lines(
                data,
                "Cosines of the step to the gradients",
                cosines,
                bounds=(-1, 1),
                level=("fairness.keep", keep) if keep else None,
            ),
            lines(data, "Shares of the step", shares, bounds=(0, 1)),
            table(["", "mean share", "mean cosine", "steps against it"], rows, "Steps"),
            note=words,
        )
    ]


def solver(run: History, data: Data) -> Html:
    """Return how the weights' equation was solved, and the skipped steps."""
    statuses = Counter(value for value in run.column("solver/status") if value is not None)
    flags: Counter[str] = Counter()
    for value, count in statuses.items():
        for bit, words in _STATUS.items():
            if int(value) & bit:
                flags[words] += count
    rows: list[list[str | float | None]] = [[words, count] for words, count in flags.items()]
    skipped = skipped_steps(run)
    rows.append(["steps skipped" + (f" ({_listed(skipped)})" if skipped else ""), len(skipped)])
    return section(
        "Solver and skipped steps",
        lines(
            data,
            "Relative residual",
            [Line("solver/residual", "residual", "c-plain")],
            log=True,
            smoothed=False,
        ),
        lines(
            data,
            "Iterations",
            [Line("solver/iterations", "iterations", "c-plain")],
            smoothed=False,
        ),
        table(["what", "steps"], rows, "What the solver met with"),
        lines(data, "Skipped so far", [Line("skipped", "skipped", "c-plain")], smoothed=False)
        if skipped
        else Html(""),
    )


def validation(run: History, data: Data) -> list[Html]:
    """Return the held-out losses, whole and by quarter of the timesteps; nothing if unmeasured."""
    keys_of = [(name, f"val/loss/{name}") for name in run.names]
    names = [name for name, key in keys_of if run.points(key) or run.not_finite(key)]
    if not names:
        return []
    charts, keys = _since_start(run, names, data), []
    for i, name in enumerate(names):
        line = Line(f"val/loss/{name}", label(name), colour(name, i))
        charts.append(lines(data, f"Held out: {label(name)}", [line], smoothed=False))
        keys.append((label(name), f"val/loss/{name}"))
    for name in names:
        quarters = [
            Line(f"val/loss/{name}/{quarter}", words, f"c-{quarter}")
            for quarter, words in zip(_QUARTERS, _QUARTER_NAMES, strict=True)
        ]
        title = f"{label(name)} by quarter of the timesteps".capitalize()
        charts.append(lines(data, title, quarters, log=True, smoothed=False))
        keys += [(f"{label(name)}, {q}", f"val/loss/{name}/{q}") for q in _QUARTERS]
    charts.append(numbers_table(run, keys, "Held-out losses"))
    return [section("Validation", *charts, note=_not_finite(run, "val/loss"))]


def _since_start(run: History, names: Sequence[str], data: Data) -> list[Html]:
    """Return how far the held-out losses have changed since step 0, where that was logged."""
    shown = [
        Line(change_keys(name)[0], label(name), colour(name, i)) for i, name in enumerate(names)
    ]
    rows: list[list[str | float | None]] = []
    for name in names:
        change, error = last_change(run, name)
        if change is not None:
            points = run.points(change_keys(name)[0])
            lowest = min(points, key=lambda point: point[1])
            rows.append([label(name), change, error, points[-1][0], lowest[1], lowest[0]])
    if not rows:
        return []
    header = ["", "last, %", "standard error", "at step", "lowest, %", "at step"]
    title = "Held out: change since the start"
    caption = "Since the start; the error is over the held-out images"
    return [lines(data, title, shown, smoothed=False, unit="%"), table(header, rows, caption)]


def last_change(run: History, name: str) -> tuple[float | None, float | None]:
    """Return the last change of an objective's held-out loss since the start, %, and its error."""
    changes, errors = (run.points(key) for key in change_keys(name))
    if not changes:
        return None, None
    step, change = changes[-1]
    return change, dict(errors).get(step)


def times(run: History, data: Data) -> Html:
    """Return where the time goes: without validation, samples and checkpoints."""
    keys = run.keys("time/")
    parts = [Line(key, key.removeprefix("time/"), f"t-{i % 6}") for i, key in enumerate(keys)]
    means = [(line.label, _mean(run, line.key), line.colour) for line in parts]
    shown = [bar("Mean step by part", means, "s")] if parts else []
    numbers = [(line.label, line.key) for line in parts] + [("whole step", "step_time_s")]
    return section(
        "Time and memory",
        *shown,
        lines(data, "Seconds by part", parts, unit="s") if parts else Html(""),
        lines(data, "Seconds per step", [Line("step_time_s", "step", "c-plain")], unit="s"),
        lines(data, "Samples per second", [Line("samples_per_s", "samples/s", "c-plain")]),
        lines(
            data,
            "Peak memory of rank 0",
            [Line("memory_gib", "GiB", "c-plain")],
            smoothed=False,
            unit="GiB",
        ),
        numbers_table(run, numbers, "Seconds"),
        note="Validation, sample pictures and checkpoints are not in a step's time.",
    )


def numbers_table(run: History, shown: Sequence[tuple[str, str]], caption: str) -> Html:
    """Return what numbers come to, from (label, key)."""
    rows: list[list[str | float | None]] = []
    for name, key in shown:
        points = run.points(key)
        if not points:
            continue
        values = [value for _, value in points]
        tail = values[-max(1, len(values) // 10) :]
        lowest = min(points, key=lambda point: point[1])
        rows.append(
            [name, values[0], values[-1], sum(tail) / len(tail), lowest[1], lowest[0], max(values)]
        )
    header = ["", "first", "last", "mean of last 10 %", "lowest", "at step", "highest"]
    return table(header, rows, caption)


def pairs_of(run: History) -> list[tuple[str, str]]:
    """Return the pairs of objectives as (label, key)."""
    names = run.names
    return [
        (f"{label(first)} and {label(second)}", f"cosine/{first}_{second}")
        for i, first in enumerate(names)
        for second in names[i + 1 :]
    ]


def skipped_steps(run: History) -> list[int]:
    """Return the steps that changed no parameter."""
    before, found = 0.0, []
    for step, count in zip(run.steps, run.column("skipped"), strict=True):
        if count is not None and count > before:
            found.append(step)
            before = count
    return found


def _not_finite(run: History, kind: str) -> str:
    """Return a sentence on an objective's numbers that were NaN or infinite; "" if none was."""
    steps = [(name, run.not_finite(f"{kind}/{name}")) for name in run.names]
    parts = [f"{label(name)} at {_listed(found)}" for name, found in steps if found]
    return f"Not finite, and not drawn: {'; '.join(parts)}." if parts else ""


def _listed(steps: Sequence[int]) -> str:
    """Return steps in words; of many, the first."""
    return ", ".join(map(str, steps[:20])) + (" …" if len(steps) > 20 else "")


def _mean(run: History, key: str) -> float:
    values = [value for _, value in run.points(key)]
    return sum(values) / len(values)
