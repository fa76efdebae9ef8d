"""Fill the cache of a run before it starts: all ranks together, what is missing alone."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from fairhuman.common.distributed import gathered, local_rank_count, on_rank0, shared
from fairhuman.common.errors import ConfigError
from fairhuman.common.output_folder import filling
from fairhuman.common.units import GIB
from fairhuman.data.cache import Cache, as_stored, encode
from fairhuman.data.cache_shards import (
    Index,
    Shards,
    merged,
    read_index,
    remove_partial,
    write_shards,
)
from fairhuman.data.dataset import People
from fairhuman.data.index.digests import image_digests
from fairhuman.data.index.records import Records
from fairhuman.data.keys import BYTES, KEY
from fairhuman.data.order import Draw
from fairhuman.data.workers import from_workers
from fairhuman.models.families.protocol import Family, Frozen

FORMER = ("latents", "text")
"""Folders of the versions that wrote a file per entry."""
_ROW = np.dtype([("key", KEY), ("part", "i1"), ("epoch", "i8"), ("index", "i8"), ("size", "i4", 2)])
"""An entry that a run asks for: its key, which of the `Wanted` asks, by which draw, and of
latents the size of the image."""
_CHUNK = 2**14
"""Draws that are looked at before those that ask for the same are dropped."""

Rows = NDArray[Any]
"""[N] of `_ROW`."""


class Wanted(NamedTuple):
    """Samples that a run will ask for."""

    people: People
    draws: Iterable[Draw]


class _Entries(NamedTuple):
    """What a run asks for, each once."""

    latents: Rows
    captions: Rows


def open_cache(folder: Path, precision: str, records: Records, family: Family, check: str) -> Cache:
    """Return the cache in a folder, of these records under this model; a collective.

    Args:
        folder: `data.cache`.
        precision: `data.cache_precision`.
        records: of the run.
        family: its frozen models.
        check: `data.check`, of files that were read before.
    """
    images = image_digests(records, check)
    text = None if family.trains_text else digest_of(family.frozen_text)
    cache = Cache(folder, precision, digest_of(family.frozen_vae), text, family.prompt_type, images)
    _read_indices(cache)
    return cache


def fill(
    cache: Cache,
    wanted: Sequence[Wanted],
    family: Family,
    device: torch.device,
    *,
    workers: int,
    say: Callable[[str], None] | None,
) -> None:
    """Build what the cache lacks of what a run will ask for; a collective.

    Args:
        cache: of the records that the draws are of.
        wanted: the same on all ranks.
        family: its frozen models.
        device: this rank's, where they go while they work.
        workers: processes per rank that read images.
        say: told what there is and what is built; None on all ranks but one.

    Raises:
        ConfigError: the disk has no room.
        OutputError: a shard cannot be written.
    """
    entries = _entries(cache, wanted)
    if say:
        kept = (
            f"and {len(entries.captions)} captions"
            if cache.captions
            else "(captions are encoded in each step)"
        )
        said = f"data.cache: {len(entries.latents)} latents {kept} in {cache.folder}"
        for line in _unused(cache):
            say(line)
    lacking = _lacking(cache, entries)
    if not any(map(len, lacking)):
        if say:
            say(f"{said}, 0 of them to build")
        return
    with filling(cache.folder, say):
        _read_indices(cache)  # again: another run may have built them meanwhile
        lacking = _lacking(cache, entries)
        needed = _bytes(cache, lacking, family)
        on_rank0(lambda: _prepare(cache.folder, needed))
        if say:
            count = sum(map(len, lacking))
            say(f"{said}, {count} of them to build ({needed / GIB:.2f} GiB)")
        mine = _Entries(*(rows[dist.get_rank() :: dist.get_world_size()] for rows in lacking))
        with family.encoders_on(device):
            built = gathered(lambda: _build(cache, wanted, mine, family, workers, say is not None))
        for shards, indices in zip(_shards(cache), zip(*built, strict=True), strict=True):
            shards.index = merged([shards.index, *indices])


def _shards(cache: Cache) -> list[Shards]:
    return [cache.latents, cache.captions] if cache.captions else [cache.latents]


def _read_indices(cache: Cache) -> None:
    """Learn on all ranks what there is, from what rank 0 reads."""
    for shards in _shards(cache):
        shards.index = on_rank0(partial(read_index, shards.folder))


def _unused(cache: Cache) -> Iterator[str]:
    """Yield a line on each file in the folder that is not used and should not be there."""
    for shards in _shards(cache):
        yield from shards.index.unusable
    former = [str(path) for name in FORMER if (path := cache.folder / name).is_dir()]
    if former:
        yield (
            f"data.cache: {' and '.join(former)}: a file per entry, of an older version of "
            "FairHuman, and not used: remove them"
        )


def _lacking(cache: Cache, entries: _Entries) -> _Entries:
    def of(shards: Shards | None, rows: Rows) -> Rows:
        return rows[~shards.index.has(rows["key"])] if shards else rows

    return _Entries(of(cache.latents, entries.latents), of(cache.captions, entries.captions))


def _bytes(cache: Cache, lacking: _Entries, family: Family) -> int:
    """Return what entries take."""
    sizes, counts = np.unique(lacking.latents["size"], axis=0, return_counts=True)
    floats = sum(
        family.moments_bytes((width, height)) * count
        for (width, height), count in zip(sizes.tolist(), counts.tolist(), strict=True)
    )
    return floats * cache.dtype.itemsize // 4 + family.prompt_bytes() * len(lacking.captions)


def _prepare(folder: Path, needed: int) -> None:
    """See that there is room, without what a run that was killed has left."""
    remove_partial(folder)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ConfigError(
            f"data.cache = {str(folder)!r}: needs {needed / GIB:.2f} GiB more, and its disk has "
            f"{free / GIB:.2f}; use another disk, data.crop=center (one crop per image), or no "
            "cache"
        )


def _build(
    cache: Cache,
    wanted: Sequence[Wanted],
    mine: _Entries,
    family: Family,
    workers: int,
    show: bool,
) -> list[Index]:
    """Build this rank's part; return what is where, as `_shards` has them."""
    with tqdm(total=sum(map(len, mine)), desc="data.cache", disable=not show) as bar:

        def captions() -> Iterator[tuple[bytes, bytes]]:
            for row in mine.captions:
                caption = wanted[row["part"]].people.drawn(_draw(row))[2]
                yield _key(row), encode(family.encode_captions([caption]))
                bar.update()

        def latents() -> Iterator[tuple[bytes, bytes]]:
            images = _Images(wanted, mine.latents)
            loader = DataLoader(images, batch_size=None, num_workers=workers)
            for key, pixels in from_workers(loader):
                yield key, encode(as_stored(family.posterior(pixels), cache.dtype))
                bar.update()

        # Captions first: there are fewer, and they are quick.
        texts = [write_shards(cache.captions.folder, captions())] if cache.captions else []
        return [write_shards(cache.latents.folder, latents()), *texts]


def digest_of(frozen: Frozen) -> str:
    """Return a digest of all that an encoder's results depend on besides its input; a collective.

    Args:
        frozen: the same on all ranks, each of which reads a part of the weights.
    """
    digest = hashlib.blake2b(
        json.dumps(dict(frozen.settings), sort_keys=True).encode(), digest_size=BYTES
    )
    weights: list[tuple[str, Tensor]] = []
    for model in frozen.models:
        digest.update(repr(model).encode())  # its layers and their settings
        weights += sorted(model.state_dict().items())
    for of_weight in shared(_digests_of, weights):
        digest.update(of_weight)
    return digest.hexdigest()


def _digests_of(weights: Sequence[tuple[str, Tensor]]) -> list[bytes]:
    def digest(weight: tuple[str, Tensor]) -> bytes:
        name, tensor = weight
        content = hashlib.blake2b(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        content.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return content.digest()

    with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // local_rank_count())) as pool:
        return list(pool.map(digest, weights))


def _entries(cache: Cache, wanted: Sequence[Wanted]) -> _Entries:
    """Return all entries that the draws ask for; every rank goes through a part of the draws."""
    found = gathered(lambda: _entries_of_rank(cache, wanted))
    return _Entries(*(_once(np.concatenate(parts)) for parts in zip(*found, strict=True)))


def _entries_of_rank(cache: Cache, wanted: Sequence[Wanted]) -> _Entries:
    latents, captions = _Distinct(), _Distinct()
    for part, (people, draws) in enumerate(wanted):
        mine = islice(draws, dist.get_rank(), None, dist.get_world_size())
        while chunk := list(islice(mine, _CHUNK)):
            drawn = [people.drawn(draw) for draw in chunk]
            latents.add(
                (cache.posterior_key(record, placement), part, *draw, placement.size)
                for draw, (record, placement, _) in zip(chunk, drawn, strict=True)
            )
            if cache.captions:
                captions.add(
                    (cache.prompt_key(caption), part, *draw, (0, 0))
                    for draw, (_, _, caption) in zip(chunk, drawn, strict=True)
                )
    return _Entries(latents.rows(), captions.rows())


class _Distinct:
    """Rows of different keys, the first of each."""

    def __init__(self) -> None:
        self._parts = [np.empty(0, _ROW)]

    def add(self, rows: Iterable[tuple[Any, ...]]) -> None:
        self._parts.append(_once(np.array(list(rows), _ROW)))
        if sum(map(len, self._parts[1:])) > len(self._parts[0]):
            self._parts = [self.rows()]

    def rows(self) -> Rows:
        return _once(np.concatenate(self._parts))


def _once(rows: Rows) -> Rows:
    """Return the first row of each key, in the order of the rows."""
    return rows[np.sort(np.unique(rows["key"], return_index=True)[1])]


def _key(row: Any) -> bytes:
    return bytes(row["key"]).ljust(BYTES, b"\0")


def _draw(row: Any) -> Draw:
    return int(row["epoch"]), int(row["index"])


class _Images(Dataset[tuple[bytes, Tensor]]):
    """The images of latents to build, as batches of one, each with its key."""

    def __init__(self, wanted: Sequence[Wanted], rows: Rows) -> None:
        self.wanted = [part.people for part in wanted]
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[bytes, Tensor]:
        row = self.rows[index]
        people = self.wanted[row["part"]]
        record, placement, _ = people.drawn(_draw(row))
        return _key(row), people.pixels(record, placement)
