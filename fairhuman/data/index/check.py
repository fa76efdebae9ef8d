"""Opening the files of a data set that are not known yet, each on one of the ranks."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
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
from fairhuman.common.images import ImageError, open_image, open_mask, upright_size
from fairhuman.data.index.files import Files, Seen, add
from fairhuman.data.index.listing import IMAGE, Listing
from fairhuman.data.stores.settled import settled
from fairhuman.data.stores.store import Store

IMAGES, MASKS = "images", "masks"
SAVE_S = 10.0
"""How often what was found is written while files are opened: what a kill can lose, in seconds."""


class Item(NamedTuple):
    """A file to open."""

    kind: str
    """IMAGES or MASKS."""
    name: str


@dataclass
class Column:
    """What a column of a listing's N rows names: the images, or masks, or control images."""

    kind: str
    names: Any
    """An Arrow array; null where a row names none."""
    sizes: NDArray[np.int32]
    """[N, 2]: width and height; 0 where there is no usable file."""
    messages: dict[int, str]
    """Why files cannot be used, by row."""


def check_files(listing: Listing, folder: Path, check: str) -> dict[str, Column]:
    """Return the sizes of all files that a listing names; a collective.

    What the index knows is used where the file has not changed since; the others are opened, each
    on one rank, and the index of every machine is told.

    Args:
        listing: the same on every rank.
        folder: the index's, on this machine.
        check: "full" decodes what is opened, "header" reads its header, and "trust" does so for
            files that the index does not know and does not look whether the others have changed.

    Returns:
        By the listing's column.

    Raises:
        OutputError: the index cannot be written.
    """
    files = {kind: Files(folder, kind) for kind in (IMAGES, MASKS)}
    columns = _columns(listing)
    stale = _stale(listing, columns, files, check)
    places: dict[Item, list[tuple[str, int]]] = {}
    for name, rows in stale.items():
        for row, value in zip(rows, columns[name].names.take(rows).to_pylist(), strict=True):
            places.setdefault(Item(columns[name].kind, value), []).append((name, int(row)))
    opener = _Opener(listing, folder, whole=check == "full")
    found = shared(lambda mine: opener.open_all(mine, of=len(places)), list(places))
    for at, result in zip(places.values(), found, strict=True):
        for name, row in at:
            if isinstance(result, str):
                columns[name].messages[row] = result
            else:
                columns[name].sizes[row] = result.width, result.height
    if places:
        agreed(lambda: _remember(listing.store, folder, list(places), found))
    return columns


def _columns(listing: Listing) -> dict[str, Column]:
    """Return the columns that name files, with no sizes yet."""
    images = [IMAGE, "control"] if listing.reading.conditioned else [IMAGE]
    kinds = dict.fromkeys(images, IMAGES) | dict.fromkeys(listing.masks(), MASKS)
    return {
        name: Column(kind, listing.column(name), np.zeros((len(listing), 2), np.int32), {})
        for name, kind in kinds.items()
    }


def _stale(
    listing: Listing, columns: dict[str, Column], files: dict[str, Files], check: str
) -> dict[str, NDArray[np.int64]]:
    """Give the columns the sizes that are known; return the rows whose files are to be opened."""

    def find() -> dict[str, NDArray[np.int64]]:
        found = {}
        for name, column in columns.items():
            known = files[column.kind].look_up(column.names)
            usable = known.found & (known.inside | (listing.reading.outside == "allow"))
            if check == "full":
                usable &= known.whole
            if check != "trust":
                # Each rank of a machine asks for its share of the files.
                asked = np.flatnonzero(usable)[local_rank() :: local_rank_count()]
                told = listing.store.stats(column.names.take(asked).to_pylist())
                usable[asked] = (told[:, 0] == known.bytes[asked]) & (
                    told[:, 1] == known.changed[asked]
                )
            column.sizes[:] = np.stack([known.width, known.height], axis=1)
            found[name] = np.flatnonzero(np.asarray(column.names.is_valid()) & ~usable)
        return found

    ranks = gathered(find)
    stale = {name: np.unique(np.concatenate([found[name] for found in ranks])) for name in columns}
    for name, column in columns.items():
        column.sizes[stale[name]] = 0
    return stale


class _Opener:
    """Opens files, and writes what it finds into the index from time to time."""

    def __init__(self, listing: Listing, folder: Path, *, whole: bool) -> None:
        self.store, self.folder, self.whole = listing.store, folder, whole
        self.outside = listing.reading.outside == "allow"

    def open_all(self, items: Sequence[Item], of: int) -> list[Seen | str]:
        """Return what each file is, or why it cannot be used."""
        threads = max(1, (os.cpu_count() or 1) // local_rank_count())
        found: list[Seen | str] = []
        saved, written = time.monotonic(), 0
        bar = tqdm(total=of, desc="checking images", delay=2, disable=rank() != 0)
        pool = ThreadPoolExecutor(threads)  # decoding happens in C, outside Python's lock
        try:
            for start in range(0, len(items), 64 * threads):
                for result in pool.map(self.open, items[start : start + 64 * threads]):
                    found.append(result)
                    bar.update(min(rank_count(), of - bar.n))
                if time.monotonic() - saved > SAVE_S:
                    self._save(items[written:], found[written:])
                    saved, written = time.monotonic(), len(found)
        except BaseException:  # stopped: the next start continues from here
            pool.shutdown(cancel_futures=True)
            self._save(items[written:], found[written:])
            raise
        finally:
            pool.shutdown(cancel_futures=True)
            bar.close()
        return found

    def open(self, item: Item) -> Seen | str:
        """Return what a file is, or why it cannot be used."""
        file, is_mask = self.store.file(item.name), item.kind == MASKS
        inside = self.store.holds(file)
        if not (inside or self.outside):
            return "is not in the data's folder"
        size, changed = settled(self.store, item.name)
        try:
            if self.whole:
                width, height = (open_mask if is_mask else open_image)(file).size
            else:
                width, height = upright_size(file)
        except ImageError as error:
            return str(error)
        return Seen(item.name, self.whole, inside, size, changed, width, height)

    def _save(self, items: Sequence[Item], found: Sequence[Seen | str]) -> None:
        for kind in (IMAGES, MASKS):
            if rows := _sound(kind, items, found):
                add(self.folder, kind, rows)


def _sound(kind: str, items: Sequence[Item], found: Sequence[Seen | str]) -> list[Seen]:
    """Return what may be remembered of the files of a kind."""
    return [
        result
        for item, result in zip(items, found, strict=False)
        if item.kind == kind and isinstance(result, Seen)
    ]


def _remember(
    store: Store, folder: Path, items: Sequence[Item], found: Sequence[Seen | str]
) -> None:
    """Write what was found into this machine's index."""
    if local_rank() != 0:
        return
    for kind in (IMAGES, MASKS):
        seen = _sound(kind, items, found)
        # On another machine, that opened it, a copy may have another time of change.
        told = store.stats([row.name for row in seen])
        rows = [
            row._replace(changed=int(changed) if row.changed >= 0 else -1)
            for row, (size, changed) in zip(seen, told, strict=True)
            if size == row.bytes
        ]
        Files(folder, kind).merge(rows)
