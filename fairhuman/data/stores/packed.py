"""Shards with pictures and rows inside, as their scans in the index list them."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairhuman.common.errors import DataError
from fairhuman.common.quoting import shown
from fairhuman.common.readable import Readable
from fairhuman.data.arrow import open_table
from fairhuman.data.stores.folder import stat
from fairhuman.data.stores.member import Member, parse
from fairhuman.data.stores.scan import COPY, FIELDS, LABEL, PROBLEM, Scan
from fairhuman.data.stores.store import Identity, Line, LineError


class PackedStore:
    """The rows are those of the shards, one shard after another.

    A row's values are as its scan has them, where pictures are texts of `Location`s.

    Args:
        root: the folder of the shards.
        index: the folder of its index.
        scans: of the shards, in their order.
    """

    image_key = "image"
    rows_are_in = "the set of shards"

    def __init__(self, root: Path, index: Path, scans: Sequence[Scan]) -> None:
        self.root, self.index, self.scans = root, index, tuple(scans)
        self._starts: list[int] = np.cumsum([0, *(scan.rows for scan in scans)]).tolist()
        # The files that hold pictures, by their names in locations.
        self._files = {scan.shard: root / scan.shard for scan in scans}
        self._files |= {f"{scan.stem}{COPY}": index / f"{scan.stem}{COPY}" for scan in scans}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PackedStore) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[Any, ...]:
        return self.root, self.scans

    def identity(self) -> Identity:
        """Return a digest of what the scans hold, and how many rows they have."""
        told = [(scan.shard, scan.digest) for scan in self.scans]
        digest = hashlib.blake2b(json.dumps(told).encode(), digest_size=16)
        return Identity(digest.hexdigest(), self._starts[-1])

    def lines(self) -> Iterator[Line]:
        """Yield the rows.

        Raises:
            DataError: a scan is not there any more.
        """
        number = 0
        for scan in self.scans:
            for batch in self._table(scan).to_batches():
                columns = (batch.column(name).to_pylist() for name in (LABEL, FIELDS, PROBLEM))
                for label, fields, problem in zip(*columns, strict=True):
                    found = LineError(problem) if problem else json.loads(fields)
                    yield Line(number, f"{self.root / scan.shard}: {label}", found)
                    number += 1

    def place(self, number: int) -> str:
        """Return the shard, and what the row is called there."""
        at = bisect_right(self._starts, number) - 1
        scan = self.scans[at]
        label = self._table(scan).column(LABEL)[number - self._starts[at]].as_py()
        return f"{self.root / scan.shard}: {label}"

    def file(self, name: str) -> Member:
        """Return the picture at a location.

        Raises:
            LineError: the name is none of a location in these shards.
        """
        location = parse(name)
        if location is None or location.shard not in self._files:
            raise LineError(
                f"{shown(name)} names a file, and shards must hold their pictures themselves: "
                "`fairhuman pack` writes them so"
            )
        return Member(self._files[location.shard], location)

    def name(self, file: Readable) -> str:
        """Return the text of a picture's location."""
        assert isinstance(file, Member), "it is a picture of another store"
        return str(file.location)

    def holds(self, file: Readable) -> bool:
        """Return True: what is named is in the shards."""
        return True

    def stats(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Return the pictures' sizes and their shards' times of change, [N, 2].

        -1 where there is no such shard any more, or one that ends before the picture does.
        """
        shards: dict[str, tuple[int, int]] = {}
        told = np.full((len(names), 2), -1, dtype=np.int64)
        for place, name in enumerate(names):
            location = parse(name)
            if location is None or location.shard not in self._files:
                continue
            if location.shard not in shards:
                shards[location.shard] = stat(self._files[location.shard])
            size, changed = shards[location.shard]
            if location.offset + location.length <= size:
                told[place] = location.length, changed
        return told

    def _table(self, scan: Scan) -> Any:
        path = scan.table(self.index)
        table = open_table(path)
        if table is None:
            raise DataError(f"{path}: is not there any more; start again, and it is made again")
        return table
