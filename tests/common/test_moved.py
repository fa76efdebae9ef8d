"""Old import paths lead to the very modules at their new ones, with a warning."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from fairhuman.common.moved import MOVED, new_path

INSIDE = [
    "fairhuman.annotation.detector",
    "fairhuman.annotation.marks",
    "fairhuman.data.drawn.scene",
]


@pytest.mark.parametrize("old", [*MOVED, *INSIDE])
def test_an_old_path_is_the_module_at_the_new_one(old: str) -> None:
    path = new_path(old)
    assert path is not None
    new = importlib.import_module(path)
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"{old} is now {path}"):
        found = importlib.import_module(old)
    assert found is new
    assert new.__spec__ is not None
    assert new.__spec__.name == new.__name__ == path


def test_an_old_path_works_in_a_fresh_process() -> None:
    code = "from fairhuman.errors import DataError; from fairhuman.common import errors; "
    code += "assert DataError is errors.DataError; from fairhuman.ops import gram"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_path_that_never_was_is_not_found() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("fairhuman.nowhere")
