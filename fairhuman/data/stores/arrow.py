"""A dataset of Hugging Face's `datasets`, as `save_to_disk` writes it: Arrow's stream format.

Arrow lays the bytes of a column one after another, so a picture is read from its place in the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fairhuman.data.stores.columns import (
    bytes_column,
    picture_columns,
    plain_columns,
    reading,
    rows,
)
from fairhuman.data.stores.member import Location
from fairhuman.data.stores.scan import Copies, Row

_END = b"\xff\xff\xff\xff\0\0\0\0"
"""What a stream ends with."""


class ArrowScanner:
    """Reads Arrow's streams."""

    kind = "Arrow"

    def keys(self, path: Path) -> list[str]:
        """Return the columns of a shard.

        Raises:
            DataError: it cannot be read.
        """
        with reading(path, "Arrow's stream"), pa.memory_map(str(path)) as file:
            return list(pa.ipc.open_stream(file).schema.names)

    def copied_bytes(self, path: Path) -> int:
        """Return 0: what `datasets` writes is not compressed."""
        return 0

    def rows(self, path: Path, shard: str, copies: Copies) -> Iterator[Row]:
        """Yield the rows of a shard.

        Raises:
            DataError: it cannot be read, or has no column with pictures.
        """
        with reading(path, "Arrow's stream"), pa.memory_map(str(path)) as file:
            whole = file.read_buffer()
            if whole[max(0, len(whole) - len(_END)) :].to_pybytes() != _END:
                raise pa.ArrowInvalid("it has no end")
            stream, first = pa.ipc.open_stream(pa.BufferReader(whole)), 0
            pictures = picture_columns(path, stream.schema)
            columns = [*plain_columns(stream.schema), *pictures]
            for read in stream:
                batch = read.select(columns)
                places = _Places(whole, shard, batch, pictures, copies)
                yield from rows(batch, shard, first, pictures, places)
                first += len(batch)


class _Places:
    """Tells where in the file the bytes of a batch lie, which is mapped and not copied."""

    def __init__(
        self, whole: Any, shard: str, batch: Any, pictures: list[str], copies: Copies
    ) -> None:
        self._whole, self._shard, self._copies = whole, shard, copies
        self._starts = {name: self._find(bytes_column(batch, name)) for name in pictures}

    def _find(self, column: Any) -> NDArray[np.int64] | None:
        """Return where a column's values begin in the file, [N]; None where they are not in it."""
        _, offsets, content = column.buffers()
        if content is None:  # all are null
            return None
        start, last = content.address - self._whole.address, self._whole.size - content.size
        if not 0 <= start <= last:
            return None
        kind = np.int64 if pa.types.is_large_binary(column.type) else np.int32
        values = np.frombuffer(offsets, kind)[column.offset : column.offset + len(column)]
        return start + values.astype(np.int64)

    def __call__(self, name: str, row: int, content: bytes, label: str) -> str:
        """Return where a picture is: in the shard or, of a stream that is compressed, in a copy."""
        starts = self._starts[name]
        if starts is None:
            return str(self._copies.add(content, label))
        return str(Location(int(starts[row]), len(content), self._shard, label))
