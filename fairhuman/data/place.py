"""Where a data set's index is."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from fairhuman.common.error_text import reason
from fairhuman.common.errors import OutputError
from fairhuman.common.hub import cached_repository

BESIDE = ".fairhuman"
"""The index's folder in the data set's."""


def open_folder(root: Path, chosen: str | None) -> Path:
    """Return the folder of a data set's index, made if it is not there.

    It is next to the images; where that cannot be written or is the hub's cache, in the user's
    cache folder.

    Args:
        root: the data set's folder.
        chosen: `data.index`.

    Raises:
        OutputError: none can be written.
    """
    failures = []
    for folder in [Path(chosen)] if chosen else _usual(root):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK | os.X_OK):
                return folder
            failures.append(f"{folder}: may not be written")
        except OSError as error:
            failures.append(f"{folder}: {reason(error)}")
    raise OutputError(
        f"no folder for the index of {root} ({'; '.join(failures)}): set data.index to one that "
        "can be written"
    )


def own_folder(chosen: str | None, root: Path) -> str | None:
    """Return the folder in `data.index` of one of several data sets."""
    return chosen and str(Path(chosen) / _name_of(root))


def _usual(root: Path) -> Iterator[Path]:
    if cached_repository(root) is None:
        yield root / BESIDE
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    yield Path(caches) / "fairhuman" / "index" / _name_of(root)


def _name_of(root: Path) -> str:
    return hashlib.blake2b(os.path.realpath(root).encode(), digest_size=12).hexdigest()
