"""What is in a shard, found once and kept in the index.

In the index's folder, for each shard:

- `shards/STEM.arrow`: a row per sample: what the shard calls it, its values as JSON with the
  `Location`s of its pictures, or why it has none;
- `shards/STEM.bytes`: copies of pictures that cannot be read from the shard at random, because it
  is compressed;
- `shards/STEM.json`: which shard that is of, written last. Of a shard of another size or time of
  change, and after another version of this module, it is made again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import pyarrow as pa
from tqdm import tqdm

from fairhuman.common.distributed import agreed, local_rank, local_rank_count, rank
from fairhuman.common.errors import OutputError
from fairhuman.common.files import as_output_error, free_bytes, replacing, write_text
from fairhuman.common.units import GIB
from fairhuman.data.arrow import open_table
from fairhuman.data.stores.folder import stat
from fairhuman.data.stores.member import Location
from fairhuman.data.stores.settled import is_fresh

VERSION = 1
"""To be raised when shards come to be read otherwise."""
LABEL, FIELDS, PROBLEM = "label", "fields", "problem"
COPY = ".bytes"
CHUNK = 2**12
"""Rows that are in memory while a scan is written."""
_SCHEMA = pa.schema([(name, pa.string()) for name in (LABEL, FIELDS, PROBLEM)])


@dataclass(frozen=True)
class Scan:
    """What is known of one shard."""

    shard: str
    """Its name, relative to the data set's folder."""
    rows: int
    digest: str
    """Of the table: the same on every machine that has the same shard."""
    keys: tuple[str, ...] | None
    """The columns that its rows have; None where each may have others."""

    @property
    def stem(self) -> str:
        """The start of its files' names, relative to the index."""
        return stem_of(self.shard)

    def table(self, index: Path) -> Path:
        """Return where its table is."""
        return index / f"{self.stem}.arrow"


class Row(NamedTuple):
    """A sample of a shard."""

    label: str
    """What the shard calls it, for messages."""
    fields: dict[str, Any]
    problem: str | None = None
    """Why it cannot be used, if that is known already."""


class Copies:
    """Pictures of one shard that are copied into a file in the index, made for the first."""

    def __init__(self, stack: ExitStack, index: Path, shard: str) -> None:
        self._stack, self._index, self._name = stack, index, f"{stem_of(shard)}{COPY}"
        self._file: BinaryIO | None = None
        self.bytes = 0

    def add(self, content: bytes, label: str) -> Location:
        """Copy a picture and return where it is; raises an OutputError where it cannot."""
        path = self._index / self._name
        with as_output_error(path):
            if self._file is None:
                aside = self._stack.enter_context(replacing(path, shared=True))
                self._file = self._stack.enter_context(aside.open("wb"))
            self._file.write(content)
        self.bytes += len(content)
        return Location(self.bytes - len(content), len(content), self._name, label)


class Scanner(Protocol):
    """Reads the shards of one kind."""

    @property
    def kind(self) -> str:
        """What they are, in a word."""

    def keys(self, path: Path) -> list[str] | None:
        """Return the columns of a shard; None where each row may have others."""

    def copied_bytes(self, path: Path) -> int:
        """Return how many bytes of pictures will be copied, at most."""

    def rows(self, path: Path, shard: str, copies: Copies) -> Iterator[Row]:
        """Yield the samples of a shard; raises a DataError where it cannot be read."""


def stem_of(shard: str) -> str:
    """Return the start of the names of a shard's files in the index."""
    plain = re.sub(r"[^\w.-]", "_", shard)[-80:]
    return f"shards/{plain}-{hashlib.blake2b(shard.encode(), digest_size=6).hexdigest()}"


def scan_shards(
    root: Path, shards: Sequence[str], scanner: Scanner, index: Path
) -> tuple[Scan, ...]:
    """Return what is in the shards, read where it is not known; a collective.

    Each rank of a machine reads some of them.

    Raises:
        DataError: a shard cannot be read.
        OutputError: the index cannot be written, or has no room for copies.
    """

    def write() -> None:
        mine = shards[local_rank() :: local_rank_count()]
        new = [shard for shard in mine if not _is_known(root, shard, scanner, index)]
        _check_room(root, new, scanner, index)
        for shard in tqdm(new, "reading shards", delay=2, disable=rank() != 0):
            _scan(root, shard, scanner, index)

    agreed(write)
    return tuple(agreed(lambda: [_told(index, shard) for shard in shards]))


def _is_known(root: Path, shard: str, scanner: Scanner, index: Path) -> bool:
    told = _read(index, shard)
    if told is None or told["of"] != _of(root, shard, scanner) or not told["settled"]:
        return False
    stem = stem_of(shard)
    if told["copied"] and stat(index / f"{stem}{COPY}")[0] != told["copied"]:
        return False
    table = open_table(index / f"{stem}.arrow")
    return table is not None and table.num_rows == told["rows"]


def _of(root: Path, shard: str, scanner: Scanner) -> list[Any]:
    """Return what a scan is known by."""
    return [VERSION, scanner.kind, shard, *stat(root / shard)]


def _check_room(root: Path, shards: Sequence[str], scanner: Scanner, index: Path) -> None:
    needed = sum(scanner.copied_bytes(root / shard) for shard in shards)
    with suppress(OSError):
        if needed > (free := free_bytes(index)):
            raise OutputError(
                f"{index}: the pictures of these {scanner.kind} shards are compressed and have to "
                f"be copied there once, {needed / GIB:.1f} GiB, and {free / GIB:.1f} GiB are free: "
                "set data.index to a folder on a larger disk, or write the shards without "
                "compression"
            )


def _scan(root: Path, shard: str, scanner: Scanner, index: Path) -> None:
    stem, path = stem_of(shard), root / shard
    of = _of(root, shard, scanner)
    with suppress(FileNotFoundError):
        (index / f"{stem}.json").unlink()
    (index / stem).parent.mkdir(parents=True, exist_ok=True)
    digest, count = hashlib.blake2b(digest_size=16), 0
    with ExitStack() as stack:
        copies = Copies(stack, index, shard)
        aside = stack.enter_context(replacing(index / f"{stem}.arrow", shared=True))
        file = stack.enter_context(pa.ipc.new_file(str(aside), _SCHEMA))
        chunk: list[dict[str, str | None]] = []
        for row in scanner.rows(path, shard, copies):
            fields = json.dumps(row.fields, default=str)
            digest.update(f"{row.label}\0{fields}\0{row.problem}\0".encode())
            chunk.append({LABEL: row.label, FIELDS: fields, PROBLEM: row.problem})
            count += 1
            if len(chunk) == CHUNK:
                file.write_batch(pa.RecordBatch.from_pylist(chunk, _SCHEMA))
                chunk = []
        file.write_batch(pa.RecordBatch.from_pylist(chunk, _SCHEMA))
    told = {
        "of": of,
        "settled": not is_fresh(of[-1]) and of == _of(root, shard, scanner),
        "rows": count,
        "digest": digest.hexdigest(),
        "copied": copies.bytes,
        "keys": scanner.keys(path),
    }
    write_text(index / f"{stem}.json", json.dumps(told))


def _told(index: Path, shard: str) -> Scan:
    """Return what has been written of a shard."""
    told = _read(index, shard)
    if told is None:
        raise OutputError(f"{index / stem_of(shard)}.json: is not there any more; start again")
    keys = None if told["keys"] is None else tuple(told["keys"])
    return Scan(shard, told["rows"], told["digest"], keys)


def _read(index: Path, shard: str) -> dict[str, Any] | None:
    with suppress(OSError, ValueError):
        told = json.loads((index / f"{stem_of(shard)}.json").read_bytes())
        if isinstance(told, dict) and told.keys() >= {"of", "settled", "rows", "copied", "keys"}:
            return told
    return None
