"""The rows of metadata.jsonl, which others may change too while they are reviewed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairhuman.curation.annotation.marks import digest
from fairhuman.data.folder import read_rows
from fairhuman.data.records import METADATA, write_metadata
from fairhuman.data.stores.folder import stat


class Rows:
    """The rows of a data set; read again where the file has changed.

    Args:
        root: the data set's folder; metadata.jsonl need not be there.

    Raises:
        DataError: a row cannot be read.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._path = root / METADATA
        self._read()

    def _read(self) -> None:
        # Asked before it is read: a change meanwhile is then seen the next time.
        found = stat(self._path)
        self.all = read_rows(self.root)
        self._places = {row["file_name"]: place for place, row in enumerate(self.all)}
        self._stat = found

    def refresh(self) -> None:
        """Read the file again if another program has changed it.

        Raises:
            DataError: a row of it cannot be read.
        """
        if stat(self._path) != self._stat:
            self._read()

    def get(self, name: str) -> dict[str, Any] | None:
        """Return the row of an image; None: there is none."""
        place = self._places.get(name)
        return None if place is None else self.all[place]

    def put(self, row: dict[str, Any]) -> None:
        """Write a row in place of the one of that image, or after the last, and save all.

        Raises:
            OutputError: metadata.jsonl cannot be written; it is as it was.
        """
        place = self._places.get(row["file_name"], len(self.all))
        rows = [*self.all[:place], row, *self.all[place + 1 :]]
        write_metadata(self.root, rows)
        self.all, self._stat = rows, stat(self._path)
        self._places[row["file_name"]] = place


def version(row: Mapping[str, Any] | None, regions: Sequence[str], root: Path) -> str:
    """Return a digest of a row and of the masks that it names: another one is another state."""
    if row is None:
        return "none"
    masks = [digest(None, row.get(f"{region}_mask"), root) for region in regions]
    text = json.dumps([row, masks], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
