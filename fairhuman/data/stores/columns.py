"""Arrow's columns as a data set's values: which hold pictures, and which plain values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from fairhuman.common.error_text import reason
from fairhuman.common.errors import DataError
from fairhuman.common.quoting import shown
from fairhuman.data.stores.scan import Row

Place = Callable[[str, int, bytes, str], str]
"""Returns the text of the location of a picture, given its column, its row, its bytes and a label
for it."""


def picture_columns(path: Path, schema: Any) -> list[str]:
    """Return the columns that hold pictures: bytes, or struct{bytes, path} as `datasets` has it.

    Raises:
        DataError: there is none.
    """
    found = [field.name for field in schema if _bytes_of(field.type) is not None]
    if not found:
        names = ", ".join(map(shown, schema.names[:20])) or "none"
        raise DataError(
            f"{path}: has no column with pictures, bytes or struct{{bytes, path}} (it has {names})"
            ": write the pictures into it, as `fairhuman pack` does"
        )
    return found


def plain_columns(schema: Any) -> list[str]:
    """Return the columns that hold anything else but bytes."""
    return [field.name for field in schema if "binary" not in str(field.type)]


def bytes_column(batch: Any, name: str) -> Any:
    """Return the bytes of a picture column of a batch, an Arrow array of binaries."""
    column = batch.column(name)
    # Flattened, a struct that is null has no bytes either.
    return column.flatten()[column.type.get_field_index("bytes")] if _is_struct(column) else column


def rows(batch: Any, shard: str, first: int, pictures: list[str], place: Place) -> Iterator[Row]:
    """Yield the rows of a batch.

    Args:
        batch: with the plain columns and those of `pictures`.
        shard: that it is of.
        first: the number of its first row in the shard, from 0.
        pictures: the columns that hold pictures.
        place: tells where they are.
    """
    plain = [name for name in batch.schema.names if name not in pictures]
    values = batch.select(plain).to_pylist() if plain else [{}] * len(batch)
    contents = {name: bytes_column(batch, name) for name in pictures}
    paths = {name: _paths(batch.column(name)) for name in pictures}
    for at, fields in enumerate(values):
        label = f"row {first + at + 1}"
        row: dict[str, Any] = {"file_name": f"{shard}/{first + at + 1}"}
        row |= {key: value for key, value in fields.items() if value is not None}
        for name in pictures:
            content, path = contents[name][at].as_py(), paths[name][at]
            if content:
                suffix = PurePosixPath(path or "").suffix
                row[name] = place(name, at, content, f"{label} {name}{suffix}")
            elif path:
                row[name] = path  # of a file that is elsewhere
        yield Row(label, row)


def _paths(column: Any) -> list[str | None]:
    at = column.type.get_field_index("path") if _is_struct(column) else -1
    found: list[str | None] = column.flatten()[at].to_pylist() if at >= 0 else [None] * len(column)
    return found


def _is_struct(column: Any) -> bool:
    return bool(pa.types.is_struct(column.type))


def _bytes_of(kind: Any) -> Any:
    """Return the type of a column's bytes; None where it holds no pictures."""
    if pa.types.is_struct(kind):
        at = kind.get_field_index("bytes")
        kind = kind.field(at).type if at >= 0 else pa.null()
    return kind if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) else None


@contextmanager
def reading(path: Path, form: str) -> Iterator[None]:
    """Raise a DataError for what the disk or pyarrow raises.

    Args:
        path: the shard.
        form: what it is read as, in words.
    """
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{path}: cannot be read as {form} ({reason(error)}): if it is cut short, copy it "
            "here again"
        ) from None
