"""Tables of file names and captions: CSV, JSON lines and Parquet, read row by row.

CSV may be divided by commas, semicolons or tabs. Of a Parquet file only the columns that are asked
for are read, a few thousand rows at a time.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fairhuman.common.error_text import first_line, reason
from fairhuman.common.errors import DataError
from fairhuman.common.json_text import JsonError, parse_lines
from fairhuman.common.quoting import shown
from fairhuman.data.captions import MARKS

ROWS_AT_A_TIME = 4096

Row = tuple[str, dict[str, Any]]
"""Its place, and its values by column; a column that it lacks is missing or None."""


@dataclass(frozen=True)
class Table:
    """A file with rows."""

    path: Path
    columns: list[str]
    rows: Callable[[Sequence[str]], Iterator[Row]]
    """Yields the rows with at least the columns named; raises a DataError where one is none."""

    def check_column(self, name: str, what: str) -> None:
        """Check that there is a column of this name, which holds `what`.

        Raises:
            DataError: there is none, or there are two.
        """
        if self.columns.count(name) != 1:
            count = "two columns" if name in self.columns else "no column"
            names = ", ".join(map(shown, self.columns[:20])) or "none"
            raise DataError(f"{self.path}: has {count} {shown(name)} for {what} (it has {names})")


def open_table(path: Path, key: str) -> Table:
    """Open a table by its suffix.

    Args:
        path: a .csv, .jsonl or .parquet file.
        key: the column of the images' file names.

    Raises:
        DataError: it is none of these, cannot be read, or lacks the column.
    """
    readers = {".csv": _csv, ".jsonl": _json_lines, ".parquet": _parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: must be a .parquet, .jsonl or .csv file")
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    table = reader(path, key)
    table.check_column(key, "the images' file names")
    return table


def _csv(path: Path, key: str) -> Table:
    with _reading(path), path.open("rb") as file:
        head = file.read(4)
    encoding = next((name for mark, name in MARKS.items() if head.startswith(mark)), "utf-8")

    def records(delimiter: str, strict: bool = True) -> Iterator[tuple[int, list[str]]]:
        """Yield the records and the lines where they begin."""
        with _reading(path), path.open(encoding=encoding, newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, strict=strict, skipinitialspace=True)
            line = 1
            try:
                for fields in reader:
                    if fields:  # not an empty line
                        yield line, fields
                    line = reader.line_num + 1
            except csv.Error as error:
                raise DataError(
                    f"{path}:{line}: is not CSV: {error}; is a quote not closed, or not doubled "
                    "inside quotes?"
                ) from None
            except UnicodeDecodeError:
                name = encoding.removesuffix("-sig").upper()
                raise DataError(
                    f"{path}: is not {name} (after line {line - 1}); save it as UTF-8"
                ) from None

    heads = {mark: next(records(mark, strict=False), (0, []))[1] for mark in ",;\t"}
    delimiter = next((one for one, columns in heads.items() if key in columns), ",")
    columns = heads[delimiter]
    if any("\0" in name for name in columns):
        raise DataError(f"{path}: holds null bytes, so not UTF-8; save it as UTF-8")

    def rows(_: Sequence[str]) -> Iterator[Row]:
        after_head = records(delimiter)
        next(after_head)
        for line, fields in after_head:
            if len(fields) != len(columns):
                raise DataError(
                    f"{path}:{line}: has {len(fields)} fields, and the first line names "
                    f"{len(columns)}; put text that holds {delimiter!r} in quotes"
                )
            yield f"{path}:{line}", dict(zip(columns, fields, strict=True))

    return Table(path, columns, rows)


def _json_lines(path: Path, key: str) -> Table:
    def rows(_: Sequence[str]) -> Iterator[Row]:
        for number, row in parse_lines(path):
            if isinstance(row, JsonError):
                raise DataError(f"{path}:{number}: {row}")
            if not isinstance(row, dict):
                raise DataError(f"{path}:{number}: must be a JSON object")
            yield f"{path}:{number}", row

    columns = dict.fromkeys(name for _, row in rows(()) for name in row)
    return Table(path, list(columns), rows)


def _parquet(path: Path, key: str) -> Table:
    def rows(columns: Sequence[str]) -> Iterator[Row]:
        with _reading(path), pq.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(ROWS_AT_A_TIME, columns=list(columns)):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}: row {number}", row

    with _reading(path), pq.ParquetFile(path) as file:
        return Table(path, file.schema_arrow.names, rows)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise a DataError for what the disk or pyarrow raises."""
    try:
        yield
    except OSError as error:  # pyarrow's too, for damaged files
        raise DataError(f"{path}: cannot be read: {reason(error)}") from None
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {first_line(error)}") from None
