"""The usable records of a run's data sets, made from their listings when they are asked for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import overload

import numpy as np
from numpy.typing import NDArray

from fairhuman.data.index.listing import IMAGE, Listing
from fairhuman.data.records import Record

CHUNK = 2**14
"""Names that are in memory at a time."""
_SOURCE = "sources["


class SourceRecords:
    """Some rows of a data set's listing.

    The table is on disk and memory-mapped, so that a process holds 16 bytes per record, and
    workers share them. A record is made each time that it is asked for.

    Args:
        listing: the table.
        rows: [N] int64, which of its rows.
        sizes: [N, 2] int32, the images' width and height.
        place: of several data sets, this one's in `data.sources`; None: there is no other.
    """

    def __init__(
        self,
        listing: Listing,
        rows: NDArray[np.int64],
        sizes: NDArray[np.int32],
        place: int | None = None,
    ) -> None:
        self.listing, self.rows, self.sizes, self.place = listing, rows, sizes, place

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Record:
        width, height = self.sizes[index].tolist()
        record = self.listing.record(int(self.rows[index]), (width, height))
        return record if self.place is None else replace(record, id=self._id(record.id))

    def select(self, places: NDArray[np.int64]) -> SourceRecords:
        """Return the records at these places."""
        return SourceRecords(self.listing, self.rows[places], self.sizes[places], self.place)

    def at(self, place: int) -> SourceRecords:
        """Return them as one of several data sets."""
        return SourceRecords(self.listing, self.rows, self.sizes, place)

    def shows(self) -> NDArray[np.bool_]:
        """Return which of them show a region, [N]."""
        return self.listing.shows()[self.rows]

    def ids(self) -> Iterator[str]:
        """Yield their ids, without making them."""
        return map(self._id, self._column("id"))

    def files(self) -> NDArray[np.uint64]:
        """Return a number for each one's image file, [N]: the same where the path is the same.

        Links to folders are followed, links to files are not.
        """
        root = os.path.realpath(self.listing.store.root)
        folders: dict[str, str] = {}

        def number(name: str) -> int:
            folder, _, file = os.path.join(root, name).rpartition(os.sep)
            if folder not in folders:
                folders[folder] = os.path.realpath(folder)
            path = f"{folders[folder]}{os.sep}{file}".encode(errors="surrogateescape")
            return int.from_bytes(hashlib.blake2b(path, digest_size=8).digest(), "little")

        return np.fromiter(map(number, self._column(IMAGE)), np.uint64, len(self))

    def _column(self, name: str) -> Iterator[str]:
        column = self.listing.column(name)
        for start in range(0, len(self), CHUNK):
            yield from column.take(self.rows[start : start + CHUNK]).to_pylist()

    def _id(self, name: str) -> str:
        """Return an id that no record of another source has.

        Those of the first source stay what they are without others, so that their random numbers,
        and what is held out of them, do not change when a source is added.
        """
        if self.place is None or (self.place == 0 and not name.startswith(_SOURCE)):
            return name
        return f"{_SOURCE}{self.place}]/{name}"


class Records(Sequence[Record]):
    """The records of all data sets, one after another, in the order of `data.sources`."""

    def __init__(self, parts: Sequence[SourceRecords]) -> None:
        self.parts = list(parts)
        self._ends = np.cumsum(self.counts())
        self._starts = self._ends - self.counts()

    def __len__(self) -> int:
        return int(self._ends[-1])

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Records: ...
    def __getitem__(self, index: int | slice) -> Record | Records:
        places = range(len(self))[index]
        if isinstance(places, range):
            return self.select(np.array(places, dtype=np.int64))
        part = int(np.searchsorted(self._ends, places, side="right"))
        return self.parts[part][places - int(self._starts[part])]

    def select(self, places: NDArray[np.int64]) -> Records:
        """Return the records at these places; parts may become empty.

        Raises:
            ValueError: the places do not ascend.
        """
        if (np.diff(places) < 0).any():
            raise ValueError("the places must ascend")
        of_parts = np.split(places, np.searchsorted(places, self._ends[:-1]))
        starts = self._starts.tolist()
        return Records(
            [
                part.select(own - start)
                for part, own, start in zip(self.parts, of_parts, starts, strict=True)
            ]
        )

    @property
    def sizes(self) -> NDArray[np.int32]:
        """Return the images' width and height, [N, 2]."""
        return np.concatenate([part.sizes for part in self.parts])

    def counts(self) -> list[int]:
        """Return how many each source has."""
        return [len(part) for part in self.parts]

    def sources(self) -> NDArray[np.int64]:
        """Return the source of each, [N]."""
        return np.repeat(np.arange(len(self.parts)), self.counts())

    def shows(self) -> NDArray[np.bool_]:
        """Return which of them show a region, [N]."""
        return np.concatenate([part.shows() for part in self.parts])

    def ids(self) -> Ids:
        """Return their ids, without making them."""
        return Ids(self)


class Ids(Collection[str]):
    """The ids of records."""

    def __init__(self, records: Records) -> None:
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, name: object) -> bool:
        return any(name == found for found in self)

    def __iter__(self) -> Iterator[str]:
        for part in self._records.parts:
            yield from part.ids()
