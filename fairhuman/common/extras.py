"""How to install what only some commands need."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires


def install_line(extra: str) -> str:
    """Return the command that installs the packages of one of FairHuman's extras."""
    try:
        listed = requires("fairhuman") or []
    except PackageNotFoundError:  # run from its source folder, not installed
        listed = []
    of_extra = re.compile(rf"""extra == ["']{extra}["']""")
    packages = [line.split(";")[0].strip() for line in listed if of_extra.search(line)]
    if not packages:
        return f"pip install '.[{extra}]'"
    return " ".join(["pip install", *(f"'{package}'" for package in packages)])
