"""What pyproject.toml lists is what there is, so that a wheel holds all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

tomllib: Any = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")

ROOT = Path(__file__).resolve().parents[1]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
# What git does not keep in the folder is at another place of the repository.
ELSEWHERE = {"fairhuman.kernels", "fairhuman.kernels.bench", "fairhuman.configs"}


def test_every_package_is_listed() -> None:
    inits = (ROOT / "fairhuman").rglob("__init__.py")
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in inits}
    assert set(SETUPTOOLS["packages"]) - ELSEWHERE == found - ELSEWHERE


def test_the_pages_files_are_shipped() -> None:
    patterns = SETUPTOOLS["package-data"]["fairhuman.curation.review"]
    folder = ROOT / "fairhuman" / "curation" / "review"
    shipped = {path for pattern in patterns for path in folder.glob(pattern)}
    assert shipped == {path for path in (folder / "static").rglob("*") if path.is_file()}
    assert folder / "static" / "konva.LICENSE" in shipped
