"""What is remembered of the files of a data set that were found usable."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fairhuman.common.files import replacing
from fairhuman.data.arrow import open_table

VERSION = 1
"""To be raised when files that were usable come to be refused."""
_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("whole", pa.bool_()),
        ("inside", pa.bool_()),
        ("bytes", pa.int64()),
        ("changed", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
    ],
    metadata={"version": str(VERSION)},
)


class Seen(NamedTuple):
    """A file that was found usable; a row of the table."""

    name: str
    """As metadata.jsonl has it: relative to the data set's folder, or absolute."""
    whole: bool
    """Whether it was decoded; otherwise its header alone was read."""
    inside: bool
    """Whether it is in the data set's folder, links followed."""
    bytes: int
    changed: int
    """The time of its last change, in nanoseconds."""
    width: int
    height: int


class Known(NamedTuple):
    """What is remembered of N files, [N] each; 0 and False where nothing is."""

    found: NDArray[np.bool_]
    whole: NDArray[np.bool_]
    inside: NDArray[np.bool_]
    bytes: NDArray[np.int64]
    changed: NDArray[np.int64]
    width: NDArray[np.int32]
    height: NDArray[np.int32]


class Files:
    """The rows of one kind of files, memory-mapped.

    Args:
        folder: the index's.
        kind: "images" or "masks": what the files were opened as.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.kind = folder, kind
        self.parts = sorted(folder.glob(f"{kind}-*.arrow"))
        # New rows first: the first row of a name is the one that is found.
        tables = [_read(path) for path in (*self.parts, self._merged)]
        self._table = pa.concat_tables([table for table in tables if table] or [_table([])])

    def look_up(self, names: Any) -> Known:
        """Return what is remembered of files; `names` is an Arrow array, null is never found."""
        places = pc.index_in(names, value_set=self._table.column("name"), skip_nulls=True)
        found = np.asarray(places.is_valid(), dtype=bool)
        columns = []
        for field in list(_SCHEMA)[1:]:
            values = np.asarray(self._table.column(field.name).take(places.drop_null()))
            column = np.zeros(len(names), values.dtype)
            column[found] = values
            columns.append(column)
        return Known(found, *columns)

    def merge(self, seen: Sequence[Seen]) -> None:
        """Write all rows into one file, new ones in place of old ones of the same file.

        Raises:
            OutputError: it cannot be written; the parts are then still there.
        """
        table = pa.concat_tables([_table(seen), self._table])
        numbered = table.select(["name"]).append_column("row", pa.array(np.arange(len(table))))
        first = numbered.group_by("name").aggregate([("row", "min")]).column("row_min")
        _write(self._merged, table.take(np.sort(first)))
        for part in self.parts:
            part.unlink(missing_ok=True)

    @property
    def _merged(self) -> Path:
        return self.folder / f"{self.kind}.arrow"


def add(folder: Path, kind: str, seen: Sequence[Seen]) -> None:
    """Write rows into a file of their own; other processes may do so at the same time.

    Raises:
        OutputError: they cannot be written.
    """
    _write(folder / f"{kind}-{os.getpid()}-{secrets.token_hex(4)}.arrow", _table(seen))


def _table(seen: Sequence[Seen]) -> Any:
    return pa.Table.from_pylist([row._asdict() for row in seen], schema=_SCHEMA)


def _write(path: Path, table: Any) -> None:
    with replacing(path, shared=True) as aside, pa.ipc.new_file(str(aside), _SCHEMA) as file:
        file.write_table(table, max_chunksize=2**16)


def _read(path: Path) -> Any:
    """Return a table; None where there is none that can be read, or one of another version."""
    table = open_table(path)
    if table is None or not table.schema.equals(_SCHEMA, check_metadata=True):
        return None
    return table
