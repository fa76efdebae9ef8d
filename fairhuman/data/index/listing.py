"""The rows of a data set as an Arrow table on disk, read once and memory-mapped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tqdm import tqdm

from fairhuman.common.files import as_output_error, replacing
from fairhuman.common.readable import Readable
from fairhuman.data.arrow import open_table
from fairhuman.data.records import (
    Entry,
    Problem,
    Reading,
    Record,
    iter_entries,
)
from fairhuman.data.regions import Annotation, Box
from fairhuman.data.stores.store import Store

VERSION = 2
"""To be raised when lines come to be read otherwise."""
IMAGE = "image"
"""The column that names the images' files."""
KEPT = 4
"""Listings of a data set that are kept: of other settings, or of its rows before."""
CHUNK = 2**14
"""Lines that are in memory while a listing is written."""


@dataclass(frozen=True)
class Key:
    """Which rows are read, and how."""

    digest: str
    lines: int
    """How many they are, about; for the progress bar alone."""


class Listing:
    """The rows of one data set as they are read by one `Reading`."""

    def __init__(self, path: Path, store: Store, reading: Reading) -> None:
        self.path, self.store, self.reading = path, store, reading
        self.table = open_table(path)
        self._batches = self.table.to_batches()
        # Of the table's chunks; a row is found by bisection.
        self._starts = np.cumsum([0, *map(len, self._batches)])

    def __reduce__(self) -> tuple[Any, ...]:
        return Listing, (self.path, self.store, self.reading)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def column(self, name: str) -> Any:
        """Return a column, a ChunkedArray."""
        return self.table.column(name)

    def masks(self) -> list[str]:
        """Return the columns that name masks."""
        return [_mask(region) for region in self.reading.regions]

    def problems(self) -> Iterator[Problem]:
        """Yield what is wrong with the lines that cannot be read."""
        for start, batch in zip(self._starts, self._batches, strict=False):
            messages = batch.column("problem")
            for place in np.flatnonzero(np.asarray(messages.is_valid())):
                yield Problem(self.place(int(start + place)), messages[int(place)].as_py())

    def place(self, row: int) -> str:
        """Return where a row is stored, for messages."""
        batch, at = self._at(row)
        return self.store.place(batch.column("line")[at].as_py())

    def entry(self, row: int) -> Entry:
        """Return a row that can be read."""
        record = self.record(row, (0, 0))
        within = self.store if self.reading.outside == "error" else None
        place = self.place(row)
        regions, control = record.regions, record.conditioning
        return Entry(place, record.id, record.image, record.text, regions, control, within)

    def record(self, row: int, size: tuple[int, int]) -> Record:
        """Return a row that can be read, and whose image has this size."""
        batch, at = self._at(row)

        def value(column: str) -> Any:
            return batch.column(column)[at].as_py()

        def file(column: str) -> Readable | None:
            name = value(column)
            return self.store.file(name) if name else None

        regions = {
            region: Annotation(_as_boxes(value(_boxes(region))), file(_mask(region)))
            for region in self.reading.regions
        }
        image = self.store.file(value(IMAGE))
        return Record(value("id"), image, value("text"), regions, size, file("control"))

    def boxes(self, region: str) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """Yield the rows and numbers, [n] and [n, 4], of a region's boxes, chunk by chunk."""
        for start, batch in zip(self._starts, self._batches, strict=False):
            lists = batch.column(_boxes(region))
            counts = np.diff(np.asarray(lists.offsets)) // 4
            rows = start + np.repeat(np.arange(len(batch)), counts)
            yield rows, np.asarray(lists.flatten()).reshape(-1, 4)

    def shows(self) -> NDArray[np.bool_]:
        """Return which rows have a box or a mask."""
        found = np.zeros(len(self), dtype=bool)
        for region in self.reading.regions:
            for rows, _ in self.boxes(region):
                found[rows] = True
            found |= np.asarray(self.column(_mask(region)).is_valid())
        return found

    def _at(self, row: int) -> tuple[Any, int]:
        """Return the chunk that holds a row, and the row's place there."""
        chunk = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._batches[chunk], row - int(self._starts[chunk])


def key_of(store: Store, reading: Reading) -> Key:
    """Return which listing is that of a data set as it is now.

    Raises:
        DataError: its rows cannot be read.
    """
    rows = store.identity()
    told = {
        "version": VERSION,
        "rows": rows.digest,
        "regions": reading.regions,
        "unannotated": reading.unannotated,
        "columns": dict(reading.columns),
        "conditioned": reading.conditioned,
    }
    if reading.caption_prefix:
        told["caption_prefix"] = reading.caption_prefix
    digest = hashlib.blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=16)
    return Key(digest.hexdigest(), rows.lines)


def path_of(folder: Path, key: Key) -> Path:
    """Return where a listing is, or would be."""
    return folder / f"listing-{key.digest}.arrow"


def write_listing(path: Path, key: Key, store: Store, reading: Reading, *, show: bool) -> None:
    """Read the rows of a data set and write their listing, in place of the oldest of KEPT others.

    Raises:
        DataError: they cannot be read.
        OutputError: the listing cannot be written.
    """
    schema = _schema(reading)
    lines = tqdm(
        iter_entries(store, reading),
        total=key.lines,
        desc=store.rows_are_in,
        unit="lines",
        delay=2,
        disable=not show,
    )
    with replacing(path, shared=True) as aside, pa.ipc.new_file(str(aside), schema) as file:
        chunk: list[dict[str, Any]] = []
        for number, found in lines:
            chunk.append(_row(number, found, store, reading))
            if len(chunk) == CHUNK:
                file.write_batch(pa.RecordBatch.from_pylist(chunk, schema))
                chunk = []
        if chunk:
            file.write_batch(pa.RecordBatch.from_pylist(chunk, schema))
    with as_output_error(path.parent):
        others = sorted(path.parent.glob("listing-*.arrow"), key=lambda p: p.stat().st_mtime)
        for old in others[:-KEPT]:
            with suppress(FileNotFoundError):
                old.unlink()


def _schema(reading: Reading) -> Any:
    fields = [
        ("line", pa.int64()),
        ("problem", pa.string()),
        ("id", pa.string()),
        (IMAGE, pa.string()),
        ("text", pa.string()),
        ("control", pa.string()),
    ]
    for region in reading.regions:
        fields += [(_boxes(region), pa.list_(pa.float64())), (_mask(region), pa.string())]
    return pa.schema(fields)


def _row(number: int, found: Entry | Problem, store: Store, reading: Reading) -> dict[str, Any]:
    if isinstance(found, Problem):
        return {"line": number, "problem": found.message}
    row: dict[str, Any] = {"line": number, "id": found.id, "text": found.text}
    row[IMAGE] = store.name(found.image)
    row["control"] = _name(found.conditioning, store)
    for region in reading.regions:
        annotation = found.regions[region]
        row[_boxes(region)] = [number for box in annotation.boxes for number in box]
        row[_mask(region)] = _name(annotation.mask, store)
    return row


def _name(file: Readable | None, store: Store) -> str | None:
    return None if file is None else store.name(file)


def _boxes(region: str) -> str:
    return f"{region} boxes"


def _mask(region: str) -> str:
    return f"{region} mask"


def _as_boxes(flat: list[float]) -> tuple[Box, ...]:
    return tuple(zip(*(iter(flat),) * 4, strict=True))
