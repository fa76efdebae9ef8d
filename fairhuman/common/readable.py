"""What the bytes of a picture are read from: a file, or a part of a larger one."""

from __future__ import annotations

import os
from typing import BinaryIO, Literal, Protocol


class Readable(Protocol):
    """A `Path`, or what can do as much. Its text names it in messages."""

    @property
    def suffix(self) -> str:
        """The end of its name, such as `.jpg`."""

    def stat(self) -> os.stat_result:
        """Describe the file that holds it; raises OSError or ValueError as `Path.stat`."""

    def open(self, mode: Literal["rb"], /) -> BinaryIO:
        """Open it at its first byte; raises OSError."""

    def read_bytes(self) -> bytes:
        """Return all of it; raises OSError."""
