"""What makes numbers of runs incomparable, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fairhuman.common.redact import redacted
from fairhuman.report.history import History, names_of

_MATTERS = {
    "data.root": "their losses are of other images",
    "data.sources": "their losses are of other images",
    "data.validation": "their held-out losses are of other images",
    "data.resolution": "their losses are of images of other sizes",
    "model.pretrained": "they start from other models",
    "model.method": "they train other weights",
    "model.lora.rank": "their LoRAs have other numbers of weights",
    "optimizer.name": "a step changes the weights by other amounts",
    "optimizer.lr": "a step changes the weights by other amounts",
}


def unlike(runs: Sequence[History]) -> Iterator[str]:
    """Yield a line for each thing in which runs differ that makes their numbers incomparable."""
    names = names_of(runs)
    for key, then in _MATTERS.items():
        if key == "model.lora.rank" and any(r.setting("model.method") != "lora" for r in runs):
            continue
        yield from _line(key, [run.setting(key) for run in runs], names, then)
    batches = [_global_batch(run) for run in runs]
    yield from _line("the global batch", batches, names, "a step shows other numbers of images")


def _line(key: str, values: Sequence[Any], names: Sequence[str], then: str) -> Iterator[str]:
    if len({str(value) for value in values if value is not None}) > 1:
        last = key.rpartition(".")[2]
        each = ", ".join(
            f"{redacted({last: value})[last]} in {name}"
            for name, value in zip(names, values, strict=True)
        )
        yield f"{key} differs ({each}): {then}"


def _global_batch(run: History) -> int | None:
    parts = [run.setting(f"train.{key}") for key in ("batch_size", "gradient_accumulation")]
    parts.append(run.environment.get("ranks"))
    if not all(isinstance(part, int) for part in parts):
        return None
    return int(parts[0]) * int(parts[1]) * int(parts[2])
