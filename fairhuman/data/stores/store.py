"""The one interface through which a data set is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fairhuman.common.readable import Readable


class LineError(Exception):
    """What is wrong with one row of a data set."""


class Line(NamedTuple):
    """A row as it is stored."""

    number: int
    """By which the store knows it."""
    place: str
    """Where it is, for messages."""
    fields: dict[str, Any] | LineError
    """Its values by key, or why it has none."""


class Identity(NamedTuple):
    """What tells whether two machines, or two starts, have the same rows."""

    digest: str
    lines: int
    """About how many there are; for a progress bar."""


class Store(Protocol):
    """The rows of a data set, and its files by name.

    Stores of the same data are equal. Processes may share one, and fork with one: it holds no open
    file.
    """

    @property
    def root(self) -> Path:
        """`data.root`."""

    @property
    def image_key(self) -> str:
        """The key, before `data.columns`, that names a row's image."""

    @property
    def rows_are_in(self) -> str:
        """What holds the rows, in words."""

    def identity(self) -> Identity:
        """Return what the rows are known by; raises a DataError where they cannot be read."""

    def lines(self) -> Iterator[Line]:
        """Yield the rows in their order; raises a DataError where they cannot be read."""

    def place(self, number: int) -> str:
        """Return where a row is, for messages."""

    def file(self, name: str) -> Readable:
        """Return the file that a row names; raises a LineError where it can be none."""

    def name(self, file: Readable) -> str:
        """Return the name by which `file` gives this one."""

    def holds(self, file: Readable) -> bool:
        """Return whether a file belongs to the data set, links followed."""

    def stats(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Return the sizes in bytes and times of change, [N, 2]; -1 where there is none."""
