"""The kernels stand alone; their benchmarks use what any user can import."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import fairhuman

KERNELS = Path(__file__).resolve().parents[2] / "kernels"


def imported(file: Path) -> Iterator[str]:
    """The modules and names of fairhuman that a file imports, as dotted paths."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fairhuman"):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("fairhuman"))


def test_kernels_import_nothing_of_fairhuman_but_themselves() -> None:
    files = sorted(KERNELS.glob("*.py"))
    assert files
    for file in files:
        for name in imported(file):
            assert name.startswith(("fairhuman.kernels.", "fairhuman._C")), (file, name)


def test_their_benchmarks_import_public_names_alone() -> None:
    public = {f"fairhuman.{name}" for name in [*fairhuman.__all__, "_C"]}
    for file in sorted((KERNELS / "bench").glob("*.py")):
        for name in imported(file):
            assert name.startswith("fairhuman.kernels.") or name in public, (file, name)
