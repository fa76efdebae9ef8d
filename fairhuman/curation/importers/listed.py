"""Folders whose captions are in a table: datasets' imagefolder, and SimpleTuner's Parquet.

A row names an image by its file name relative to the folder, with or without its ending, and has
its caption. Columns `faces` and `hands` with boxes, as lists or as JSON text, are taken too.
"""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from fairhuman.common.errors import DataError
from fairhuman.common.images import SUFFIXES
from fairhuman.common.json_text import JsonError, parse
from fairhuman.common.quoting import shown
from fairhuman.curation.annotation.detector import REGIONS
from fairhuman.curation.importers.common import check_out, write_data_set
from fairhuman.curation.importers.folders import ImportedFolder, readable_images, such_as
from fairhuman.curation.importers.tables import Table, open_table
from fairhuman.data.folder import find_images
from fairhuman.data.records import SHOWN, LineError, check_boxes, read_boxes

BOXES = tuple(f"{region}s" for region in REGIONS)
"""The columns of boxes."""

TABLES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""The names of the tables that datasets looks for."""


@dataclass(frozen=True)
class Columns:
    """The columns of a table that are read."""

    file_name: str = "file_name"
    """The images' names: text, or whole numbers."""
    caption: str = "text"
    """Text, or lists of texts, of which the first is taken."""
    fallback: str | None = None
    """The caption where the other is empty."""


def import_imagefolder(images: Path, out: Path, caption_column: str = "text") -> ImportedFolder:
    """Write a data set of an imagefolder with metadata.csv, .jsonl or .parquet into `out`.

    Raises:
        DataError: no such table, or several; and see `import_table`.
    """
    check_out(out, images)
    found = [name for name in TABLES if os.path.lexists(images / name)]
    if len(found) > 1:
        raise DataError(f"{images}: holds {' and '.join(found)}; rename what is not to be read")
    if not found:
        below = [path.parent for name in TABLES for path in sorted(images.glob(f"*/{name}"))]
        hint = f"; give --images {below[0]}" if below else ""
        raise DataError(f"{images}: holds none of {', '.join(TABLES)}{hint}")
    return import_table(images / found[0], images, out, Columns(caption=caption_column))


def import_table(table: Path, images: Path, out: Path, columns: Columns) -> ImportedFolder:
    """Write a data set of the images that a table names into `out`.

    Args:
        table: a .parquet, .jsonl or .csv file.
        images: the folder of the images.
        out: a folder that holds no data set yet.
        columns: of the table.

    Raises:
        DataError: a table or a row that is not what it should be, or that leads out of the folder;
            no image that a row names.
    """
    check_out(out, images)
    source = open_table(table, columns.file_name)
    source.check_column(columns.caption, "the captions; give it as --caption-column")
    if columns.fallback is not None:
        source.check_column(columns.fallback, "captions")
    names, left_out = find_images(images)
    found = _read(source, columns, _Names(images, names))
    if not found.rows:
        missing = f", such as {found.missing.first}" if found.missing.count else ""
        message = f"{images}: holds no image that {table} names{missing}"
        raise DataError("\n".join([*map(str, left_out[:SHOWN]), message]))
    shapes = readable_images(images, list(found.rows), left_out)
    rows = [found.rows[name] for name in shapes]
    for name, shape in shapes.items():
        for region in REGIONS:
            try:
                boxes = read_boxes(f"{region}s", found.rows[name].get(f"{region}s", []))
                check_boxes(region, boxes, shape.upright)
            except LineError as error:
                raise DataError(f"{found.places[name]}: {error}") from None
    notes = found.notes(table)
    if unnamed := [name for name in names if name not in found.rows]:
        notes.append(
            f"{len(unnamed)} images are not in {table} and were left out, such as {unnamed[0]}"
        )
    read = {columns.file_name, columns.caption, columns.fallback, *BOXES}
    if rest := [name for name in source.columns if name not in read]:
        notes.append(f"columns that are not taken: {such_as(list(map(shown, rest)))}")
    write_data_set(out, images, rows)
    return ImportedFolder(rows, notes, left_out)


class _Names:
    """The images of a folder, as a table may name them."""

    def __init__(self, images: Path, names: Sequence[str]) -> None:
        self._images = images
        self._names = frozenset(names)
        self._stems: dict[str, list[str]] = defaultdict(list)
        for name in names:
            self._stems[_composed(os.path.splitext(name)[0])].append(name)

    def find(self, name: str) -> str | None:
        """Return the image that a name means; None: there is none.

        Raises:
            ValueError: the name leads out of the folder, or is that of several images.
        """
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(
                f"{shown(name)} leads out of {self._images}: give names relative to that folder"
            )
        if str(path) in self._names:
            return str(path)
        stem, suffix = os.path.splitext(str(path))
        if suffix.lower() in SUFFIXES:
            same = [
                one
                for one in self._stems.get(_composed(stem), ())
                if os.path.splitext(one)[1].lower() == suffix.lower()
            ]
        else:
            same = self._stems.get(_composed(str(path)), [])
        if len(same) > 1:
            raise ValueError(f"{shown(name)} may be {' or '.join(same)}: write the whole name")
        return same[0] if same else None


def _composed(text: str) -> str:
    """Return a text with each accented letter as one character: file systems differ in that."""
    return unicodedata.normalize("NFC", text)


@dataclass
class _Tally:
    """How many there are, of which the first can be told: a table may have millions."""

    count: int = 0
    first: str = ""

    def add(self, what: str) -> None:
        self.first = self.first or what
        self.count += 1


@dataclass
class _Found:
    """What a table holds."""

    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Of metadata.jsonl, by the images' names."""
    places: dict[str, str] = field(default_factory=dict)
    missing: _Tally = field(default_factory=_Tally)
    """Names that no image has."""
    again: _Tally = field(default_factory=_Tally)
    """Places of rows that name an image which an earlier row names."""
    several: _Tally = field(default_factory=_Tally)
    """Images with several captions."""

    def notes(self, table: Path) -> list[str]:
        notes = []
        if self.missing.count:
            notes.append(
                f"{self.missing.count} rows of {table} name images that are not there, such as "
                f"{self.missing.first}"
            )
        if self.again.count:
            notes.append(
                f"{self.again.count} rows name an image that an earlier row names, such as "
                f"{self.again.first}: the earlier one is taken"
            )
        if self.several.count:
            notes.append(
                f"{self.several.count} images have several captions, such as "
                f"{self.several.first}: the first is taken"
            )
        return notes


def _read(table: Table, columns: Columns, names: _Names) -> _Found:
    found = _Found()
    captions = [columns.caption, *([columns.fallback] if columns.fallback else [])]
    keys = [key for key in BOXES if key in table.columns]
    wanted = list(dict.fromkeys([columns.file_name, *captions, *keys]))
    for place, values in table.rows(wanted):
        try:
            given = _name(columns.file_name, values.get(columns.file_name))
            name = names.find(given)
            if name is None:
                found.missing.add(shown(given))
                continue
            if name in found.rows:
                found.again.add(place)
                continue
            texts = next(filter(None, (_texts(key, values.get(key)) for key in captions)), [])
            row: dict[str, Any] = {"file_name": name, "text": texts[0] if texts else ""}
            for key in keys:
                if (boxes := _boxes(key, values.get(key))) is not None:
                    row[key] = boxes
        except ValueError as error:
            raise DataError(f"{place}: {error}") from None
        found.rows[name], found.places[name] = row, place
        if len(texts) > 1:
            found.several.add(name)
    return found


def _name(column: str, value: Any) -> str:
    if type(value) is int:
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{column} = {shown(value)}: must be the name of an image")
    return value


def _texts(column: str, value: Any) -> list[str]:
    """Return the captions of a cell that hold words, each on one line."""
    several = value if isinstance(value, list) else [value]
    texts = []
    for one in several:
        if one is not None and not isinstance(one, str):
            raise ValueError(f"{column} = {shown(value)}: must be text, or a list of texts")
        texts.append(" ".join((one or "").split()))
    return [text for text in texts if text]


def _boxes(column: str, value: Any) -> Any:
    """Return a cell of boxes, not yet checked: its value, or what its text says as JSON."""
    if not isinstance(value, str):
        return value
    try:
        return parse(value) if value.strip() else None
    except JsonError as error:
        raise ValueError(
            f"{column} = {shown(value)}: {error}; write [[x, y, width, height], …]"
        ) from None
