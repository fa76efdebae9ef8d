"""The same arms in cases that differ in one thing: does a setting of one hold in another?"""

from __future__ import annotations

from collections.abc import Mapping

from fairhuman.config import load_config
from fairhuman.evaluation.study.outcome import Outcome
from fairhuman.evaluation.study.plan import Case, Study
from fairhuman.evaluation.study.tables import Table
from fairhuman.report.parts import label


def studies(plan: Study) -> dict[str, Study]:
    """Return a study for each case, in a folder of its own; nothing where there are none.

    Raises:
        ConfigError: an arm's training config is wrong.
    """
    found = {}
    for name, case in plan.cases.items():
        found[name] = plan.model_copy(
            update={
                "output_dir": f"{plan.output_dir}/{name.replace(' ', '-')}",
                "arms": {
                    arm: settings.model_copy(update={"set": _settings(plan, arm, case)})
                    for arm, settings in plan.arms.items()
                },
                "drawn": plan.drawn and plan.drawn.model_copy(update=case.drawn),
                "cases": {},
            }
        )
    return found


def _settings(plan: Study, arm: str, case: Case) -> list[str]:
    """Return an arm's settings in a case."""
    own = [*plan.arms[arm].set, *case.set]
    if not case.scale:
        return own
    before = load_config(plan.train, [*plan.set, *own]).objectives.scale
    scale = before | {name: factor * before.get(name, 1.0) for name, factor in case.scale.items()}
    text = ", ".join(f"{name}: {factor!r}" for name, factor in scale.items())
    return [*own, f"objectives.scale={{{text}}}"]


def cases_table(found: Mapping[str, Outcome]) -> Table:
    """Return what each arm has come to in each case."""
    first = next(iter(found.values()))
    seeds = len(first.results[first.reference])
    whole = first.names[0]
    rows = []
    for case, outcome in found.items():
        for arm in outcome.results:
            row = [f"{case}: {arm}"]
            row += [outcome.change(arm, "steps", name).show() for name in outcome.names]
            apart, _ = outcome.difference(arm, outcome.reference, "steps", whole)
            rows.append([*row, "" if arm == outcome.reference else apart.show()])
    note = (
        "Change of the held-out loss since the start, in per cent: lower is better; mean ± "
        f"standard deviation over {seeds} seeds. The last column is the whole image's less that of "
        f"`{first.reference}` in the same case, seed by seed, in percentage points."
    )
    names = [label(name) for name in first.names]
    header = ["case: arm", *names, f"{names[0]}, less {first.reference}'s"]
    return Table("One setting, other cases", note, header, rows)
