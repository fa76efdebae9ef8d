"""What a run has left in its folder."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairhuman.common.errors import UserError
from fairhuman.common.run_folder import CONFIG, ENVIRONMENT, METRICS, SAMPLES
from fairhuman.common.text_files import read_small
from fairhuman.common.yaml_text import parse_yaml, values

Column = list[float | None]
_SHEET = re.compile(r"step-(\d{8})\.png")


@dataclass
class History:
    """A run's numbers and pictures."""

    name: str
    """Of its folder."""
    steps: list[int]
    records: list[dict[str, Any]]
    """The lines of metrics.jsonl: step 0, where it is logged, has held-out losses alone."""
    config: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    sheets: list[tuple[int, Path]] = field(default_factory=list)
    """The sample pictures and their steps, in order."""

    def column(self, key: str) -> Column:
        """Return a number of every step; None where it is absent or was not measured."""
        return [record.get(key) for record in self.records]

    def keys(self, *prefixes: str) -> list[str]:
        """Return the keys under these prefixes that have a number at any step, in their order."""
        found: dict[str, None] = {}
        for record in self.records:
            found |= dict.fromkeys(
                key
                for key, value in record.items()
                if value is not None and key.startswith(prefixes)
            )
        return list(found)

    def points(self, key: str) -> list[tuple[int, float]]:
        """Return the steps that have a number, with it."""
        return [
            (step, value)
            for step, value in zip(self.steps, self.column(key), strict=True)
            if value is not None
        ]

    def not_finite(self, key: str) -> list[int]:
        """Return the steps at which a number was NaN or infinite, and is null for that."""
        return [
            step
            for step, record in zip(self.steps, self.records, strict=True)
            if key in record.get("not_finite", ())
        ]

    @property
    def names(self) -> list[str]:
        """The objectives: `global` and the regions."""
        step = self.records[-1]
        return [key.removeprefix("loss/") for key in step if key.startswith("loss/")]

    def setting(self, key: str) -> Any:
        """Return the config's section.key, or None."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value


def read_run(folder: Path) -> History:
    """Read a run's folder, also that of one which is under way or was killed.

    Raises:
        UserError: there is no run, or none of its steps was finished, or a file is broken.
    """
    path = folder / METRICS
    if not path.is_file():
        raise UserError(
            f"{folder}: holds no run (there is no {METRICS}); give the train.output_dir of one"
        )
    records = _records(path)
    if not records or records[-1]["step"] == 0:
        raise UserError(f"{path}: holds no finished step yet; try again when the run has made one")
    samples = folder / SAMPLES
    sheets = [(m, p) for p in sorted(samples.glob("*.png")) if (m := _SHEET.fullmatch(p.name))]
    return History(
        folder.resolve().name,
        [record["step"] for record in records],
        records,
        _tree(folder / CONFIG),
        _tree(folder / ENVIRONMENT),
        [(int(match[1]), path) for match, path in sheets],
    )


def names_of(runs: Sequence[History]) -> list[str]:
    """Return what to call runs on one page: their folders' names, numbered if they are the same."""
    names = [run.name for run in runs]
    return [
        f"{name} ({names[: i + 1].count(name)})" if names.count(name) > 1 else name
        for i, name in enumerate(names)
    ]


def _records(path: Path) -> list[dict[str, Any]]:
    lines = path.read_bytes().decode("utf-8", errors="replace").splitlines()
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line, parse_constant=_null, parse_float=_finite)
            known = isinstance(record, dict) and isinstance(record["step"], int)
        except (ValueError, KeyError):
            known = False
        if known:
            records.append(record)
        elif number < len(lines):  # the last may be half-written
            raise UserError(f"{path}:{number}: is no step of a run; remove the line")
    return records


def _null(constant: str) -> None:
    """Take NaN and Infinity, which are no JSON, as null."""


def _finite(text: str) -> float | None:
    """Return a number; None if it is beyond all floats."""
    value = float(text)
    return value if math.isfinite(value) else None


def _tree(path: Path) -> dict[str, Any]:
    """Read YAML, or JSON, which is YAML; a run of an old version may lack the file."""
    if not path.is_file():
        return {}
    tree = values(parse_yaml(read_small(path, "record of a run"), str(path)))
    return tree if isinstance(tree, dict) else {}
