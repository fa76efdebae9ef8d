"""A run's numbers: metrics.jsonl, the trackers and the progress bar, from one record a step.

All of them are finite or null: `finite` is the one place that sees to it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fairhuman.common.files import as_output_error, write_text
from fairhuman.common.run_folder import METRICS
from fairhuman.training.balancers.base import Balance
from fairhuman.training.trackers import Tracker

NOT_FINITE = "not_finite"
"""The key of a step's keys whose numbers were NaN or infinite; only where there are such."""


def step_record(
    names: Sequence[str], losses: Sequence[float | None], balance: Balance
) -> dict[str, Any]:
    """Return what a step's losses, weights, gradients and solver came to, by key.

    None stands for what is absent from the batch or not measured in this mode; what is not
    finite stays so.
    """
    record: dict[str, Any] = {}
    for name, loss in zip(names, losses, strict=True):
        record[f"loss/{name}"] = loss
    for name, weight in zip(names, balance.weights, strict=True):
        record[f"weight/{name}"] = weight
    for name, norm in zip(names, balance.grad_norms, strict=True):
        record[f"grad_norm/{name}"] = norm
    record["grad_norm/update"] = balance.update_norm
    for i, first in enumerate(names):
        for j in range(i + 1, len(names)):
            record[f"cosine/{first}_{names[j]}"] = balance.cosines[i][j]
    unknown: list[float | None] = [None] * len(names)
    for name, share in zip(names, balance.shares or unknown, strict=True):
        record[f"share/{name}"] = share
    for name, progress in zip(names, balance.progress or unknown, strict=True):
        record[f"progress/{name}"] = progress
    record["solver/status"] = balance.status
    record["solver/residual"] = balance.residual
    record["solver/iterations"] = balance.iterations
    return record


def finite(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with None for each number that is NaN or infinite, and its NOT_FINITE."""
    strange = [k for k, v in record.items() if isinstance(v, float) and not math.isfinite(v)]
    if not strange:
        return dict(record)
    return {**record, **dict.fromkeys(strange), NOT_FINITE: strange}


class Log:
    """Where rank 0 writes a run's numbers. A resumed run continues in the same files."""

    def __init__(
        self,
        output: Path,
        steps: int,
        start: int,
        names: Sequence[str],
        trackers: Sequence[Tracker],
        first: Mapping[str, Any] | None = None,
    ) -> None:
        """Open the log of a run.

        Args:
            output: OUT, which is there.
            steps: of the whole run.
            start: the steps that are done; of those after it the lines are dropped.
            names: of the objectives.
            trackers: told of every line too.
            first: the line of step 0 of a resumed run, for a file that has lost it.
        """
        self.names = list(names)
        self.trackers = trackers
        self.path = output / METRICS
        # A run from the beginning measures its own step 0.
        lost = not keep_until(self.path, start or -1, first)
        with as_output_error(self.path):
            self._file = self.path.open("a", encoding="utf-8")
        self._bar = tqdm(
            total=steps, initial=start, unit="step", dynamic_ncols=True, smoothing=0.1, miniters=1
        )
        if first and lost:
            self._track(finite(first))

    def begin(self, record: Mapping[str, Any]) -> None:
        """Add what was measured before the first step, as step 0."""
        self._add(record)

    def write(self, record: dict[str, Any]) -> None:
        """Add one optimizer step."""
        self._add(record)
        self._bar.set_postfix_str(self._summary(record), refresh=False)
        self._bar.update()

    def _add(self, record: Mapping[str, Any]) -> None:
        written = finite(record)
        with as_output_error(self.path):
            self._file.write(_line(written))
            self._file.flush()
        self._track(written)

    def _track(self, written: Mapping[str, Any]) -> None:
        no_numbers = ("step", NOT_FINITE)
        numbers = {k: v for k, v in written.items() if v is not None and k not in no_numbers}
        for tracker in self.trackers:
            tracker.write(numbers, written["step"])

    def say(self, line: str) -> None:
        """Print a line above the progress bar."""
        self._bar.write(line)

    def picture(self, tag: str, image: Any, step: int) -> None:
        """Show a picture, [H, W, 3] uint8, to the trackers."""
        for tracker in self.trackers:
            tracker.picture(tag, image, step)

    def close(self) -> None:
        """Write out everything; nothing can be added afterwards."""
        self._bar.close()
        with as_output_error(self.path):
            os.fsync(self._file.fileno())
            self._file.close()
        for tracker in self.trackers:
            tracker.close()

    def _summary(self, record: dict[str, Any]) -> str:
        def told(name: str) -> str:
            loss, weight = record[f"loss/{name}"], record[f"weight/{name}"]
            return f"{name} absent" if loss is None else f"{name} {loss:.4f} ({weight:.3g})"

        skipped = f"{record['skipped']} skipped | " if record["skipped"] else ""
        return (
            f"loss (weight): {', '.join(map(told, self.names))} | {skipped}"
            f"{record['samples_per_s']:.1f} samples/s"
        )


def keep_until(path: Path, step: int, first: Mapping[str, Any] | None = None) -> bool:
    """Drop the lines after `step` from a metrics file, as if the run had stopped there.

    A run that was killed wrote steps after its last checkpoint; they are taken again.

    Args:
        path: of the file; it need not exist.
        step: the last to keep.
        first: the line of step 0, put there where the file has none.

    Returns:
        Whether the file had a line of step 0.
    """
    kept, has_start = [], False
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for line in lines:
        try:
            at = json.loads(line)["step"]
            if at <= step:
                kept.append(line + "\n")
                has_start = has_start or at == 0
        except (ValueError, KeyError):
            break  # a half-written last line
    if first and not has_start:
        kept.insert(0, _line(finite(first)))
    if lines or kept:
        write_text(path, "".join(kept))
    return has_start


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"
