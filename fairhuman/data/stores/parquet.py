"""Parquet with the pictures inside, as `datasets` writes it.

A picture is read from its place in the shard where the column is not compressed, as `fairhuman
pack` writes it. Where it is compressed a picture would cost the decompression of all around it, so
that it is copied into the index once.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from fairhuman.data.stores.columns import picture_columns, plain_columns, reading, rows
from fairhuman.data.stores.member import Location
from fairhuman.data.stores.scan import Copies, Row

ROWS_AT_A_TIME = 32
_PART = 2**20
"""Bytes of a column that are read at a time."""
_HEADER = 2**16
"""The most bytes between two values of a column: the header of a page and its levels."""


class ParquetScanner:
    """Reads Parquet shards."""

    kind = "Parquet"

    def keys(self, path: Path) -> list[str]:
        """Return the columns of a shard.

        Raises:
            DataError: it cannot be read.
        """
        with reading(path, "Parquet"), pq.ParquetFile(path) as file:
            return list(file.schema_arrow.names)

    def copied_bytes(self, path: Path) -> int:
        """Return how many bytes of pictures are compressed.

        Raises:
            DataError: it cannot be read, or has no column with pictures.
        """
        with reading(path, "Parquet"), pq.ParquetFile(path) as file:
            pictures = picture_columns(path, file.schema_arrow)
            return sum(
                chunk.total_uncompressed_size
                for group in range(file.num_row_groups)
                for name, chunk in _chunks(file, group).items()
                if name in pictures and chunk.compression != "UNCOMPRESSED"
            )

    def rows(self, path: Path, shard: str, copies: Copies) -> Iterator[Row]:
        """Yield the rows of a shard.

        Raises:
            DataError: it cannot be read, or has no column with pictures.
        """
        with (
            reading(path, "Parquet"),
            path.open("rb") as raw,
            pq.ParquetFile(path, buffer_size=_PART) as file,
        ):
            pictures = picture_columns(path, file.schema_arrow)
            columns = [*plain_columns(file.schema_arrow), *pictures]
            first = 0
            for group in range(file.num_row_groups):
                places = _Places(raw.fileno(), shard, _chunks(file, group), copies)
                batches = file.iter_batches(ROWS_AT_A_TIME, [group], columns, use_threads=False)
                for batch in batches:
                    yield from rows(batch, shard, first, pictures, places)
                    first += len(batch)


class _Places:
    """Finds the values of a row group's columns in the file, in their order."""

    def __init__(self, file: int, shard: str, chunks: dict[str, Any], copies: Copies) -> None:
        self._file, self._shard, self._copies = file, shard, copies
        self._next = {
            name: chunk.dictionary_page_offset or chunk.data_page_offset
            for name, chunk in chunks.items()
            if chunk.compression == "UNCOMPRESSED"
        }

    def __call__(self, name: str, row: int, content: bytes, label: str) -> str:
        """Return where a picture is: in the shard, or in a copy of it."""
        start = self._next.get(name)
        if start is not None:
            # Stored plainly, each value follows its length in four bytes.
            value = struct.pack("<I", len(content)) + content
            at = os.pread(self._file, _HEADER + len(value), start).find(value)
            if at >= 0:
                self._next[name] = start + at + len(value)
                return str(Location(start + at + 4, len(content), self._shard, label))
        return str(self._copies.add(content, label))


def _chunks(file: Any, group: int) -> dict[str, Any]:
    """Return where the columns' bytes are in a row group, by the top name of each column."""
    described = file.metadata.row_group(group)
    found = {}
    for number in range(described.num_columns):
        chunk = described.column(number)
        name, _, inner = chunk.path_in_schema.partition(".")
        if inner in ("", "bytes"):
            found[name] = chunk
    return found
