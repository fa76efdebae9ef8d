"""The samples of a folder as they go into shards: values, and the files that belong to them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairhuman.common.errors import DataError
from fairhuman.common.json_text import half_character
from fairhuman.common.quoting import shown
from fairhuman.data.records import CONTROL, SHOWN
from fairhuman.data.stores.folder import FolderStore
from fairhuman.data.stores.store import LineError

IMAGE = "image"


@dataclass(frozen=True)
class Sample:
    """One image with what belongs to it."""

    fields: dict[str, Any]
    """The row by our keys, without those that name other files; null and missing are the same."""
    files: dict[str, str]
    """Names by key, relative to the folder: `image`, `face_mask`, …"""
    stats: dict[str, os.stat_result]
    """Of the files, by key."""

    @property
    def bytes(self) -> int:
        """Return how much the files are."""
        return sum(found.st_size for found in self.stats.values())


def read_samples(root: Path, columns: Mapping[str, str]) -> Iterator[Sample]:
    """Yield the samples of a folder in the order of metadata.jsonl.

    Args:
        root: the folder.
        columns: other names of the keys, by ours, as `data.columns`.

    Raises:
        DataError: rows that cannot be packed, one line each (the first 20), after the others.
    """
    store = FolderStore(root)
    problems: list[str] = []
    seen: dict[str, int] = {}
    for number, place, fields in store.lines():
        try:
            if isinstance(fields, LineError):
                raise fields
            sample = _sample(store, fields, columns)
            name = sample.fields["file_name"]
            if name in seen:
                raise LineError(f"{shown(name)} is listed already ({store.place(seen[name])})")
            seen[name] = number
            yield sample
        except LineError as error:
            problems.append(f"{place}: {error}")
            if len(problems) == SHOWN:
                break
    if problems:
        raise DataError("\n".join(problems))


def _sample(store: FolderStore, row: dict[str, Any], columns: Mapping[str, str]) -> Sample:
    theirs = {name: key for key, name in columns.items()}
    values = {
        theirs.get(key, key): value
        for key, value in row.items()
        if value is not None and (key in theirs or key not in columns)
    }
    if half := half_character(json.dumps(values, ensure_ascii=False)):
        raise LineError(f"holds {half}, half a character: write the whole one")
    for key in ("file_name", "text"):
        if not isinstance(values.get(key, ""), str):
            raise LineError(f"{key} = {shown(values[key])}: must be text")
    if not values.get("file_name"):
        raise LineError(f"must have {columns.get('file_name', 'file_name')!r}")
    if IMAGE in values:
        raise LineError(f"has the key {IMAGE!r}, which is the picture's in shards: rename it")
    files = {IMAGE: values["file_name"]}
    for key in [key for key in values if names_file(key)]:
        name = values.pop(key)
        if not isinstance(name, str):
            raise LineError(f"{key} = {shown(name)}: must be text")
        if name:  # an empty name is none
            files[key] = name
    return Sample(values, files, {key: _stat(store, name) for key, name in files.items()})


def names_file(key: str) -> bool:
    """Return whether a row's key names a file: a region's mask, or the control image."""
    return key == CONTROL or (key.isidentifier() and key.endswith("_mask"))


def _stat(store: FolderStore, name: str) -> os.stat_result:
    path = store.file(name)
    if not store.holds(path):
        raise LineError(f"{path} is not in the data's folder: move or copy it there")
    try:
        if not path.is_file():
            raise LineError(f"{path}: there is no such file")
        return path.stat()
    except OSError as error:
        raise LineError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise LineError(f"{shown(name)}: no file can have this name") from None
