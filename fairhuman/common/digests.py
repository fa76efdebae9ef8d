"""Digests of a checkpoint's files: taken where they were written, compared before they are read.

They find what a disk, a copy or a network changed. They are no signature: whoever can write the
files can write their digests too.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HEX = r"[0-9a-f]{64}"
# A piece at a time: small enough to lie in the processor's cache, large enough for hashlib to let
# other threads run.
_PIECE = 1 << 20


def digest(path: Path, sync: bool = False) -> str:
    """Return a file's SHA-256 in hexadecimal; with `sync`, when it is on the disk too.

    Raises:
        OSError: it cannot be read.
    """
    found = hashlib.sha256()
    piece = memoryview(bytearray(_PIECE))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(piece):
            found.update(piece[:count])
        if sync:
            os.fsync(file.fileno())
    return found.hexdigest()


def digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the digests of freshly written files, which are on the disk when this returns.

    Raises:
        OSError: one cannot be read, or not be written to the disk.
    """
    names = list(names)
    with ThreadPoolExecutor(_threads()) as pool:
        return dict(
            zip(names, pool.map(lambda name: digest(folder / name, sync=True), names), strict=True)
        )


def differing(folder: Path, expected: Mapping[str, str]) -> list[str]:
    """Return the files that have another digest, or cannot be read, in the order given."""

    def differs(name: str) -> bool:
        try:
            return digest(folder / name) != expected[name]
        except OSError:  # a bad block, say: not what was written either
            return True

    with ThreadPoolExecutor(_threads()) as pool:
        found = pool.map(differs, expected)
        return [name for name, wrong in zip(expected, found, strict=True) if wrong]


def share(files: Mapping[str, int], rank: int, ranks: int) -> list[str]:
    """Return a rank's share of files: about as many bytes for each, the largest first."""
    loads = [0] * ranks
    mine = []
    for name in sorted(files, key=lambda name: (-files[name], name)):
        least = loads.index(min(loads))
        loads[least] += files[name] + 1
        if least == rank:
            mine.append(name)
    return mine


def _threads() -> int:
    return min(8, len(os.sched_getaffinity(0)))
