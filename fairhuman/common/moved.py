"""Import paths of version 0.1 that scripts use: they keep working, with a warning, until 0.3."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType

MOVED = {
    "fairhuman.annotation": "fairhuman.curation.annotation",
    "fairhuman.data.drawn": "fairhuman.demo.drawn",
    "fairhuman.errors": "fairhuman.common.errors",
    "fairhuman.generate": "fairhuman.models.generate",
    "fairhuman.models.tiny": "fairhuman.demo.tiny",
    "fairhuman.ops": "fairhuman.fairness.ops",
}
"""Modules and packages, with all that is in them."""


def new_path(name: str) -> str | None:
    """Return where a module of 0.1 is now; None where it is no moved one."""
    for old, new in MOVED.items():
        if name == old or name.startswith(f"{old}."):
            return new + name.removeprefix(old)
    return None


class _Moved(MetaPathFinder, Loader):
    """Imports the module at its new path and gives that, itself, under the old name."""

    def __init__(self) -> None:
        self._own: dict[str, ModuleSpec | None] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return spec_from_loader(name, self) if new_path(name) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        new = new_path(spec.name)
        assert new is not None
        warnings.warn(
            f"{spec.name} is now {new}; the old path goes in FairHuman 0.3",
            DeprecationWarning,
            stacklevel=2,
        )
        module = importlib.import_module(new)
        self._own[spec.name] = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # The import system has just given the module the old path's spec.
        old = module.__spec__
        assert old is not None
        module.__spec__ = self._own.pop(old.name)


def keep_moved_paths() -> None:
    """Make the old paths importable; to be called once, by the package."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        # Before the usual finder, which would load a second copy of a moved package's modules.
        sys.meta_path.insert(0, _Moved())
