"""A picture inside a shard: a stretch of its bytes, whose name says where it is."""

from __future__ import annotations

import errno
import io
import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal, NamedTuple


class Location(NamedTuple):
    """Where a picture is in a shard; its text is its name."""

    offset: int
    length: int
    """In bytes."""
    shard: str
    """Relative to the data set's folder; a copy's is relative to the index."""
    label: str
    """What the picture is called inside the shard."""

    def __str__(self) -> str:
        return f"{self.offset}+{self.length}/{self.shard}//{self.label}"


_NAME = re.compile(r"(\d{1,18})\+(\d{1,18})/(.+?)//(.*)", re.DOTALL)


def parse(name: str) -> Location | None:
    """Return the location that a name is; None where it is none."""
    found = _NAME.fullmatch(name)
    return Location(int(found[1]), int(found[2]), found[3], found[4]) if found else None


@dataclass(frozen=True)
class Member:
    """A picture inside a shard, read as a file is.

    It holds no open file: each reader opens the shard for itself, so processes may fork and threads
    read at once.
    """

    path: Path
    """The shard's, or that of a copy from it."""
    location: Location

    def __str__(self) -> str:
        return f"{self.path}: {self.location.label}"

    @property
    def suffix(self) -> str:
        """The end of its name in the shard."""
        return PurePosixPath(self.location.label).suffix

    def stat(self) -> os.stat_result:
        """Describe the shard."""
        return self.path.stat()

    def open(self, mode: Literal["rb"]) -> BinaryIO:
        """Return the picture's bytes as a file in memory."""
        return io.BytesIO(self.read_bytes())

    def read_bytes(self) -> bytes:
        """Return the picture's bytes.

        Raises:
            OSError: the shard cannot be read, or ends before them.
        """
        with self.path.open("rb", buffering=0) as file:
            parts, at, left = [], self.location.offset, self.location.length
            while left:
                part = os.pread(file.fileno(), left, at)  # at most 2 GiB at a time
                if not part:
                    raise OSError(errno.EIO, "its shard is cut short", str(self.path))
                parts.append(part)
                at, left = at + len(part), left - len(part)
        return b"".join(parts)
