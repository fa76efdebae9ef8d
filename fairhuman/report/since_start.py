"""How far the held-out losses have changed since the start, in words and figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from fairhuman.config import change_keys
from fairhuman.report.parts import label


def change_text(change: float | None, error: float | None) -> str:
    """Return a change in per cent and its standard error; a dash where it is not known."""
    if change is None:
        return "–"
    return f"{change:+.2f} %" if error is None else f"{change:+.2f} ± {error:.2f} %"


def changes_in_words(values: Mapping[str, float | None], names: Sequence[str]) -> Iterator[str]:
    """Yield what each objective's loss has changed by, from the keys of a log's line."""
    for name in names:
        change, error = (values.get(key) for key in change_keys(name))
        if change is not None:
            yield f"{label(name)} {change_text(change, error)}"
