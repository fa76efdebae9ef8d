"""The command by which an extra is installed."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from fairhuman.common import extras

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("extra", ["annotate", "evaluate", "rules", "study", "wandb", "xformers"])
def test_it_names_the_packages_for_no_index_has_fairhuman(extra: str) -> None:
    listed = re.search(
        rf"^{extra} = (\[.*\])$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE
    )
    assert listed
    packages = extras.install_line(extra).removeprefix("pip install ").split("' '")
    named = [package.strip("'").replace(" ", "") for package in packages]
    assert named == [package.replace(" ", "") for package in ast.literal_eval(listed[1])]
