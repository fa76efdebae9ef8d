"""From a config to the records of its data set, by way of the index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fairhuman.common.distributed import agreed, gathered, local_rank, rank
from fairhuman.common.errors import DataError
from fairhuman.common.images import ImageError
from fairhuman.common.readable import Readable
from fairhuman.config import Config
from fairhuman.data.arrow import open_table
from fairhuman.data.hub import local_root
from fairhuman.data.index.check import MASKS, Column, check_files
from fairhuman.data.index.listing import IMAGE, Listing, key_of, path_of, write_listing
from fairhuman.data.index.records import Records, SourceRecords
from fairhuman.data.place import open_folder, own_folder
from fairhuman.data.records import (
    TOLERANCE_PX,
    Problem,
    Reading,
    check_entry,
    refuse_unusable,
)
from fairhuman.data.stores.choose import open_store


def load(config: Config) -> tuple[Records, list[Problem]]:
    """Read and check the data sets of a training config; a collective.

    Returns:
        The records in the order of the data sets and their rows, and what was left out.

    Raises:
        DataError: every problem, one line each (the first 20), or a data set without a sample.
        OutputError: the index cannot be written.
    """
    parts: list[SourceRecords] = []
    left_out: list[Problem] = []
    for section, listing in open_listings(config).items():
        part, unusable = check_records(listing, config.data.check)
        problems = [*listing.problems(), *unusable.values()]
        refuse_unusable(listing.store, len(part), problems, config.data.on_error, section)
        parts.append(part)
        left_out += problems
    return joined(parts), left_out


def joined(parts: Sequence[SourceRecords]) -> Records:
    """Return the records of all data sets."""
    if len(parts) == 1:
        return Records(parts)
    return Records([part.at(place) for place, part in enumerate(parts)])


def check_records(listing: Listing, check: str) -> tuple[SourceRecords, dict[int, Problem]]:
    """Check the rows of a listing against the files that they name; a collective.

    Args:
        listing: the same on every rank.
        check: how files are opened that are not known; see `check_files`.

    Returns:
        The records that can be used, and by row what is wrong with the others that can be read.

    Raises:
        OutputError: the index cannot be written.
    """
    columns = check_files(listing, listing.path.parent, check)
    problems: dict[int, Problem] = {}
    usable = np.asarray(listing.column("problem").is_null())
    for row in map(int, np.flatnonzero(usable & _is_suspect(listing, columns))):
        found = check_entry(listing.entry(row), _measure(listing, columns, row))
        if isinstance(found, Problem):
            problems[row] = found
            usable[row] = False
    rows = np.flatnonzero(usable)
    return SourceRecords(listing, rows, columns[IMAGE].sizes[rows]), problems


def open_listings(config: Config) -> dict[str, Listing]:
    """Return the rows of a config's data sets by the section that describes each; a collective.

    Raises:
        DataError, OutputError: as `read_listing`.
    """
    sources, index = config.data.named_sources, config.data.index
    found = {}
    for section, source in sources.items():
        root = local_root(source, section)
        # Their files may have the same names, by which the index knows them.
        folder = index if len(sources) == 1 else own_folder(index, root)
        reading = Reading.of(config, source)
        found[section] = read_listing(root, reading, folder, section, source.split)
    return found


def read_listing(
    root: Path,
    reading: Reading,
    index: str | None,
    section: str = "data",
    split: str | None = None,
) -> Listing:
    """Return the rows of a data set, read if they are not; a collective.

    Args:
        root: the data set's folder.
        reading: how its rows are read.
        index: `data.index`.
        section: of the config, that names the folder as its `root`; for messages.
        split: `data.split`.

    Raises:
        DataError: its rows cannot be read, or are others on another machine.
        OutputError: the listing cannot be written.
    """
    store = open_store(root, index, reading.columns, section, split)
    keys = gathered(lambda: key_of(store, reading))
    if len(set(keys)) > 1:
        raise DataError(
            f"{root}: {store.rows_are_in} is not the same on all machines: copy one to the others"
        )
    folder = agreed(lambda: open_folder(root, index))
    path = path_of(folder, keys[0])

    def write() -> None:
        if local_rank() == 0 and open_table(path) is None:
            write_listing(path, keys[0], store, reading, show=rank() == 0)

    agreed(write)
    return Listing(path, store, reading)


def _is_suspect(listing: Listing, columns: dict[str, Column]) -> NDArray[np.bool_]:
    """Return which rows `check_entry` may find something wrong with, by the same arithmetic."""
    sizes = columns[IMAGE].sizes
    suspect = sizes[:, 0] == 0
    for name, column in columns.items():
        if name != IMAGE:
            named = np.asarray(column.names.is_valid())
            suspect |= named & (column.sizes != sizes).any(axis=1)
    for region in listing.reading.regions:
        for rows, boxes in listing.boxes(region):
            if not len(rows):
                continue
            far = np.maximum(-boxes[:, :2], boxes[:, :2] + boxes[:, 2:] - sizes[rows])
            suspect[rows[far.max(axis=1) > TOLERANCE_PX]] = True
            suspect[rows[(boxes.max(axis=1) <= 1) & (sizes[rows].max(axis=1) > 1)]] = True
    return suspect


def _measure(
    listing: Listing, columns: dict[str, Column], row: int
) -> Callable[[Readable, bool], tuple[int, int]]:
    """Return what tells `check_entry` the sizes of a row's files, which have been opened."""

    def measure(path: Readable, is_mask: bool) -> tuple[int, int]:
        for column in columns.values():
            name = column.names[row].as_py()
            if (
                name is None
                or (column.kind == MASKS) != is_mask
                or listing.store.file(name) != path
            ):
                continue
            if row in column.messages:
                raise ImageError(column.messages[row])
            width, height = column.sizes[row].tolist()
            return width, height
        raise LookupError(path)

    return measure
