"""The usable records of a data set, made from its listing when they are asked for."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from fairhuman.data.index.listing import Listing
from fairhuman.data.records import Record


class Records(Sequence[Record]):
    """Some rows of a listing.

    The table is on disk and memory-mapped, so that a process holds 16 bytes per record, and
    workers share them. A record is made each time that it is asked for.

    Args:
        listing: the table.
        rows: [N] int64, which of its rows.
        sizes: [N, 2] int32, the images' width and height.
    """

    def __init__(self, listing: Listing, rows: NDArray[np.int64], sizes: NDArray[np.int32]) -> None:
        self.listing, self.rows, self.sizes = listing, rows, sizes

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Records: ...
    def __getitem__(self, index: int | slice) -> Record | Records:
        if isinstance(index, slice):
            return self.select(np.arange(len(self))[index])
        width, height = self.sizes[index].tolist()
        return self.listing.record(int(self.rows[index]), (width, height))

    def select(self, places: NDArray[np.int64]) -> Records:
        """Return the records at these places."""
        return Records(self.listing, self.rows[places], self.sizes[places])

    def shows(self) -> NDArray[np.bool_]:
        """Return which of them show a region, [N]."""
        return self.listing.shows()[self.rows]

    def ids(self) -> Ids:
        """Return their ids, without making them."""
        return Ids(self)


class Ids(Collection[str]):
    """The ids of records."""

    def __init__(self, records: Records) -> None:
        self._column, self._rows = records.listing.column("id"), records.rows

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, name: object) -> bool:
        return any(name == found for found in self)

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), 2**14):
            yield from self._column.take(self._rows[start : start + 2**14]).to_pylist()
