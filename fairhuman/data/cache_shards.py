"""Many small entries in a few large files, each entry found by its key.

A shard is its entries one after another, then a table of their keys, offsets and lengths as
`np.save` writes it, the table's length in 8 bytes, and `MAGIC`. It is written under another name
and gets its own when it is on the disk, so that a kill loses the shard that is being written.
"""

from __future__ import annotations

import io
import itertools
import os
import secrets
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fairhuman.common.error_text import reason
from fairhuman.common.errors import OutputError
from fairhuman.common.files import PARTIAL, as_output_error, replacing
from fairhuman.data.keys import KEY, Keys, as_keys, places_of

SUFFIX = ".shard"
MAGIC = b"FHSHARD1"
"""The last byte is the format's version."""
SHARD_BYTES = 2**30
"""A shard is closed when it is as large,"""
SHARD_S = 120.0
"""or as old, in seconds: what a kill can lose."""
_THREADS = 16
"""That open shards: a network's file system takes a millisecond for each."""

TABLE = np.dtype([("key", KEY), ("offset", "<i8"), ("length", "<i8")])
"""Of a shard."""
_PLACE = np.dtype([("shard", "<i4"), ("length", "<i4"), ("offset", "<i8")])
INDEX_BYTES = KEY.itemsize + _PLACE.itemsize
"""Of an entry, in memory."""


@dataclass(frozen=True)
class Index:
    """Where the entries of some shards are; `INDEX_BYTES` for each."""

    names: Sequence[str] = ()
    """Of the shards."""
    keys: Keys = field(default_factory=lambda: np.empty(0, KEY))
    """[N], sorted."""
    places: NDArray[Any] = field(default_factory=lambda: np.empty(0, _PLACE))
    """[N]: shard, by its place in `names`, offset and length in bytes."""
    unusable: Sequence[str] = ()
    """A line for each shard that cannot be used."""

    def has(self, keys: Keys) -> NDArray[np.bool_]:
        """Return which of the keys, [N], are there."""
        return places_of(keys, self.keys) >= 0


class Entry(NamedTuple):
    """An entry as it was read."""

    path: Path
    """Of its shard."""
    content: bytes


class Shards:
    """The shards of a folder, as they were when `index` was read.

    An index is two arrays, which forked workers share. No file stays open: a shard is opened for
    each entry that is read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index = Index()

    def read(self, key: bytes) -> Entry:
        """Read an entry.

        Raises:
            OutputError: it is not there, or its shard cannot be read.
        """
        index = self.index
        (found,) = places_of(as_keys([key]), index.keys)
        if found < 0:
            raise OutputError(
                f"data.cache: {self.folder} lacks an entry; start again, and it is built"
            )
        shard, length, offset = index.places[found].item()
        path = self.folder / index.names[shard]
        try:
            with path.open("rb", buffering=0) as file:
                content = os.pread(file.fileno(), length, offset)
        except OSError as error:
            raise damaged(path, reason(error)) from error
        if len(content) < length:
            raise damaged(path, "it is cut short")
        return Entry(path, content)


class _Shard(NamedTuple):
    name: str
    table: NDArray[Any]


def read_index(folder: Path) -> Index:
    """Read the tables of all shards in a folder; none where there is no folder.

    Raises:
        OutputError: the folder cannot be listed.
    """
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(SUFFIX))
    except FileNotFoundError:
        return Index()
    except OSError as error:
        raise OutputError(f"data.cache: {folder} cannot be read: {reason(error)}") from error
    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(lambda name: _read_table(folder / name), names))
    usable = [
        _Shard(name, table)
        for name, table in zip(names, found, strict=True)
        if not isinstance(table, str)
    ]
    return _index_of(usable, [line for line in found if isinstance(line, str)])


def merged(indices: Sequence[Index]) -> Index:
    """Return one index of what all of these hold."""
    starts = np.cumsum([0, *(len(index.names) for index in indices)])
    places = np.concatenate([index.places for index in indices])
    places["shard"] += np.repeat(starts[:-1], [len(index.keys) for index in indices])
    return _sorted(
        [name for index in indices for name in index.names],
        np.concatenate([index.keys for index in indices]),
        places,
        [line for index in indices for line in index.unusable],
    )


def damaged(path: Path, why: str) -> OutputError:
    """Return the error of a shard that was whole when the run began, or seemed to be."""
    return OutputError(
        f"data.cache: {path} cannot be read ({why}); remove it and start again, and what it held "
        "is built again"
    )


def write_shards(
    folder: Path,
    entries: Iterable[tuple[bytes, bytes]],
    *,
    size: int = SHARD_BYTES,
    seconds: float = SHARD_S,
) -> Index:
    """Write entries, each a key and a content, into shards of their own; return where they are.

    Where `entries` raises an error, what came before it is kept.

    Args:
        folder: made for the first; others may write into it at the same time.
        entries: keys of 20 bytes, all different.
        size: of a shard, about.
        seconds: after which it is closed.

    Raises:
        OutputError: a shard cannot be written; those before it are whole.
    """
    coming = iter(entries)
    written: list[_Shard] = []
    for first in coming:
        written.append(_write_shard(folder, itertools.chain([first], coming), size, seconds))
    return _index_of(written)


def tail_of(table: NDArray[Any]) -> bytes:
    """Return what follows the entries in a shard.

    Args:
        table: of `TABLE`, in the order of the entries.
    """
    tail = io.BytesIO()
    np.save(tail, table, allow_pickle=False)
    return tail.getvalue() + tail.tell().to_bytes(8, "little") + MAGIC


def remove_partial(folder: Path) -> None:
    """Remove what a process that was killed has left of a shard, in the folders of a folder."""
    for path in folder.glob(f"*/*{SUFFIX}{PARTIAL}"):
        path.unlink(missing_ok=True)


def _write_shard(
    folder: Path, entries: Iterable[tuple[bytes, bytes]], size: int, seconds: float
) -> _Shard:
    path = folder / f"{secrets.token_hex(8)}{SUFFIX}"
    rows: list[tuple[bytes, int, int]] = []
    coming, offset, failed = iter(entries), 0, None
    until = time.monotonic() + seconds
    with as_output_error(folder, "data.cache: cannot be written"):
        folder.mkdir(parents=True, exist_ok=True)
    with replacing(path) as aside, aside.open("wb") as file:
        while not rows or (offset < size and time.monotonic() < until):
            try:
                entry = next(coming, None)
            except BaseException as error:  # of the encoder, or a signal: what there is, is kept
                failed = error
                break
            if entry is None:
                break
            key, content = entry
            file.write(content)
            rows.append((key, offset, len(content)))
            offset += len(content)
        table = np.array(rows, TABLE)
        file.write(tail_of(table))
    if failed:
        raise failed
    return _Shard(path.name, table)


def _read_table(path: Path) -> NDArray[Any] | str:
    """Return a shard's table, or a line on why it cannot be used."""
    try:
        with path.open("rb", buffering=0) as file:
            end = os.fstat(file.fileno()).st_size
            tail = os.pread(file.fileno(), 16, max(0, end - 16))
            if tail[8:-1] == MAGIC[:-1] and tail[8:] != MAGIC:
                return (
                    f"data.cache: {path} is of another version of FairHuman, and is not used: "
                    "remove it, or use another folder"
                )
            length = int.from_bytes(tail[:8], "little")
            if tail[8:] == MAGIC and length <= end - 16:
                start = end - 16 - length
                content = os.pread(file.fileno(), length, start)
                with suppress(ValueError, EOFError):
                    table = np.load(io.BytesIO(content), allow_pickle=False)
                    if table.dtype == TABLE and _fills(table, start):
                        return table
    except OSError as error:
        return f"data.cache: {path} cannot be read ({reason(error)}), and is not used"
    return (
        f"data.cache: {path} is cut short or damaged, and is not used: remove it; what it held is "
        "built again"
    )


def _fills(table: NDArray[Any], size: int) -> bool:
    """Return whether a table's entries lie one after another, up to this size."""
    ends = np.cumsum(table["length"])
    starts = np.concatenate([[0], ends])
    return bool((table["offset"] == starts[:-1]).all() and starts[-1] == size)


def _index_of(shards: Sequence[_Shard], unusable: Sequence[str] = ()) -> Index:
    tables = [shard.table for shard in shards]
    rows = np.concatenate([np.empty(0, TABLE), *tables])
    places = np.empty(len(rows), _PLACE)
    places["shard"] = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
    places["length"], places["offset"] = rows["length"], rows["offset"]
    return _sorted([shard.name for shard in shards], rows["key"], places, unusable)


def _sorted(
    names: Sequence[str], keys: Keys, places: NDArray[Any], unusable: Sequence[str]
) -> Index:
    kept, first = np.unique(keys, return_index=True)  # two runs may have built the same
    return Index(names, kept, places[first], unusable)
