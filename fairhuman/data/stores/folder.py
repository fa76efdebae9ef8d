"""A folder with metadata.jsonl and a file for each picture."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairhuman.common.errors import DataError
from fairhuman.common.json_text import JsonError, parse_lines
from fairhuman.common.readable import Readable
from fairhuman.common.redact import on_the_hub
from fairhuman.data.stores.store import Identity, Line, LineError

METADATA = "metadata.jsonl"

FAR_S = 5e-5
"""A file system that takes longer than this to describe a file is asked by many threads."""


@dataclass(frozen=True)
class FolderStore:
    """The rows are the lines of metadata.jsonl; files are named relative to the folder."""

    root: Path
    section: str = field(default="data", compare=False)
    """Of the config, that names the folder as its `root`."""
    blobs: Path | None = None
    """Where the links of a snapshot in the hub's cache lead: its files count as in the folder."""
    image_key = "file_name"
    rows_are_in = METADATA

    def identity(self) -> Identity:
        """Return a digest of metadata.jsonl and how many lines it has.

        Raises:
            DataError: it is not there or cannot be read.
        """
        digest = hashlib.blake2b(digest_size=16)
        path, lines = metadata_path(self.root, self.section), 0
        try:
            with path.open("rb") as file:
                while part := file.read(2**22):
                    digest.update(part)
                    lines += part.count(b"\n")
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from None
        return Identity(digest.hexdigest(), lines)

    def lines(self) -> Iterator[Line]:
        """Yield the lines of metadata.jsonl.

        Raises:
            DataError: it is not there or cannot be read.
        """
        for number, fields in read_lines(metadata_path(self.root, self.section)):
            yield Line(number, self.place(number), fields)

    def place(self, number: int) -> str:
        """Return metadata.jsonl and the line."""
        return f"{self.root / METADATA}:{number}"

    def file(self, name: str) -> Path:
        """Return the path of a file; it may be outside the folder."""
        return self.root / name

    def name(self, file: Readable) -> str:
        """Return what gives the path when it is joined to the root."""
        path = Path(str(file))
        return str(path.relative_to(self.root) if path.is_relative_to(self.root) else path)

    def holds(self, file: Readable) -> bool:
        """Return whether a file is in the folder, links followed."""
        real = os.path.realpath(str(file))
        folders = [self.root] if self.blobs is None else [self.root, self.blobs]
        return any(real.startswith(os.path.join(os.path.realpath(own), "")) for own in folders)

    def stats(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Return the sizes in bytes and times of change of files, [N, 2]; -1 where there is none.

        A file system that is far away is asked by many threads.
        """
        told = np.empty((len(names), 2), dtype=np.int64)
        folder = os.path.join(self.root, "")

        def ask(places: Sequence[int]) -> None:
            for place in places:
                name = names[place]
                # os.path.join would take as long as the call itself.
                told[place] = stat(name if name.startswith(os.sep) else folder + name)

        few = range(len(names))[:200]
        began = time.perf_counter()
        ask(few)
        rest = range(len(names))[len(few) :]
        if time.perf_counter() - began < FAR_S * len(few):
            ask(rest)
        else:
            with ThreadPoolExecutor(32) as pool:
                list(pool.map(ask, (rest[start : start + 1000] for start in rest[::1000])))
        return told


def stat(path: str | Path) -> tuple[int, int]:
    """Return a file's size in bytes and time of change; -1 where there is none."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return -1, -1
    return found.st_size, found.st_mtime_ns


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | LineError]]:
    """Yield the numbers of metadata.jsonl's lines and what they hold, or why they hold no object.

    Raises:
        DataError: the file cannot be read.
    """
    for number, found in parse_lines(path, lenient=True):
        if isinstance(found, JsonError):
            yield number, LineError(str(found))
        elif isinstance(found, dict):
            yield number, found
        else:
            yield number, LineError("must be a JSON object")


def metadata_path(root: Path, section: str) -> Path:
    """Return the path of metadata.jsonl; raise a DataError if it is not there."""
    path = root / METADATA
    try:
        if not root.is_dir():
            hub = f"; one on the hub is hf://datasets/{root}" if on_the_hub(str(root)) else ""
            raise DataError(f"{section}.root = {str(root)!r}: there is no such folder{hub}")
        if not path.is_file():
            raise DataError(
                f"{section}.root = {str(root)!r}: holds no {METADATA} (one JSON object per "
                "image; see 'Your own data' in the docs); `fairhuman annotate` writes one"
            )
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    return path
