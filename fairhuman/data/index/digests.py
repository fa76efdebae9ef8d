"""Digests of the images of a data set: each is computed once, while its file does not change."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from tqdm import tqdm

from fairhuman.common.distributed import (
    agreed,
    gathered,
    local_rank,
    local_rank_count,
    rank,
    rank_count,
    shared,
)
from fairhuman.common.files import replacing
from fairhuman.data.arrow import open_table
from fairhuman.data.index.listing import IMAGE
from fairhuman.data.index.records import Ids, Records, SourceRecords
from fairhuman.data.keys import BYTES, Keys, as_keys, places_of
from fairhuman.data.stores.settled import settled
from fairhuman.data.stores.store import Store

_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("size", pa.int64()),
        ("changed", pa.int64()),
        ("digest", pa.binary(BYTES)),
    ]
)


class _Read(NamedTuple):
    """A file that was read; a row of the table."""

    name: str
    size: int
    """In bytes."""
    changed: int
    """The time of its last change, in nanoseconds; -1: it may have changed while it was read."""
    digest: bytes


class Digests(Mapping[str, bytes]):
    """A digest of each record's image file, by the record's id.

    Two arrays, 40 bytes per record, which forked workers share; a dict takes 300, and each worker
    comes to have its own copy.

    Args:
        ids: [N].
        digests: [N, 20] uint8, in the order of the ids.
    """

    def __init__(self, ids: Ids, digests: NDArray[np.uint8]) -> None:
        self._ids = ids
        keys = _keys_of(ids)
        order = np.argsort(keys)
        self._keys, self._digests = keys[order], digests[order]

    def __getitem__(self, name: str) -> bytes:
        (place,) = places_of(_keys_of([name]), self._keys)
        if place < 0:
            raise KeyError(name)
        return self._digests[place].tobytes()

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)


def _keys_of(names: Iterable[str]) -> Keys:
    return as_keys(hashlib.blake2b(name.encode(), digest_size=BYTES).digest() for name in names)


def image_digests(records: Records, check: str) -> Digests:
    """Return a digest of each record's image file; a collective.

    Files are read that are new, or have another size or time of change than when they were read
    before. Each is read on one rank.

    Args:
        records: on every rank the same.
        check: `data.check`; "trust" does not look at sizes and times of files that are known.

    Raises:
        OutputError: a file cannot be read, or the index not be written.
    """
    found = [_of_source(part, check) for part in records.parts]
    return Digests(records.ids(), np.concatenate(found))


def _of_source(records: SourceRecords, check: str) -> NDArray[np.uint8]:
    listing = records.listing
    path = listing.path.with_name("digests.arrow")
    names = listing.column(IMAGE).take(records.rows)
    known, digests = _known(path, names)

    def find() -> NDArray[np.int64]:
        asked = np.flatnonzero(known[:, 0] >= 0)[local_rank() :: local_rank_count()]
        if check == "trust":
            return asked[:0]
        told = listing.store.stats(names.take(asked).to_pylist())
        return asked[(told != known[asked]).any(axis=1)]

    changed = np.concatenate(gathered(find))
    stale = np.union1d(np.flatnonzero(known[:, 0] < 0), changed)
    # Copies on other machines may be known there alone.
    stale = np.unique(np.concatenate(gathered(lambda: stale)))
    found = shared(
        lambda mine: _read_all(listing.store, mine, of=len(stale)), names.take(stale).to_pylist()
    )
    if found:
        agreed(lambda: _remember(path, listing.store, found))
    for place, row in zip(stale.tolist(), found, strict=True):
        digests[place] = np.frombuffer(row.digest, np.uint8)
    return digests


def _known(path: Path, names: Any) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Return sizes and times of change as remembered, [N, 2], -1 where nothing is.

    And the digests, [N, 20].
    """
    numbers = np.full((len(names), 2), -1, np.int64)
    digests = np.zeros((len(names), BYTES), np.uint8)
    table = open_table(path)
    if table is None or not table.schema.equals(_SCHEMA):
        return numbers, digests
    places = pc.index_in(names, value_set=table.column("name"))
    here = np.flatnonzero(np.asarray(places.is_valid()))
    rows = table.take(places.drop_null())
    for column, name in enumerate(("size", "changed")):
        numbers[here, column] = np.asarray(rows.column(name))
    known = as_keys(rows.column("digest").to_pylist())
    digests[here] = known.view(np.uint8).reshape(-1, BYTES)
    return numbers, digests


def _read_all(store: Store, names: Sequence[str], of: int) -> list[_Read]:
    threads = max(1, (os.cpu_count() or 1) // local_rank_count())
    found = []
    with (
        ThreadPoolExecutor(threads) as pool,
        tqdm(total=of, desc="reading images", delay=2, disable=rank() != 0) as bar,
    ):
        for row in pool.map(lambda name: _read(store, name), names):
            found.append(row)
            bar.update(min(rank_count(), of - bar.n))
    return found


def _read(store: Store, name: str) -> _Read:
    before = settled(store, name)
    digest = hashlib.blake2b(store.file(name).read_bytes(), digest_size=BYTES).digest()
    size, changed = settled(store, name)
    return _Read(name, size, changed if (size, changed) == before else -1, digest)


def _remember(path: Path, store: Store, found: Sequence[_Read]) -> None:
    """Write what was read into this machine's index."""
    if local_rank() != 0:
        return
    # On another machine, that read it, a copy may have another time of change.
    told = store.stats([row.name for row in found])
    rows = [
        row._replace(changed=int(changed))._asdict()
        for row, (size, changed) in zip(found, told, strict=True)
        if row.changed >= 0 and size == row.size
    ]
    new, old = pa.Table.from_pylist(rows, schema=_SCHEMA), open_table(path)
    if old is not None and old.schema.equals(_SCHEMA):
        kept = pc.invert(pc.is_in(old.column("name"), value_set=new.column("name")))
        new = pa.concat_tables([old.filter(kept), new])
    with replacing(path, shared=True) as aside, pa.ipc.new_file(str(aside), _SCHEMA) as file:
        file.write_table(new, max_chunksize=2**16)
