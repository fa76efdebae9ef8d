"""Standard output and error that lose their reader, such as a terminal or an ssh connection."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO, cast


@contextmanager
def outliving_readers(told: Callable[[], None]) -> Iterator[None]:
    """Discard what this process prints once nobody can read it, and do not fail for it.

    Args:
        told: called for each of the two streams that has lost its reader.
    """
    output, errors = (cast(TextIO, _Stream(stream, told)) for stream in (sys.stdout, sys.stderr))
    with redirect_stdout(output), redirect_stderr(errors):
        yield


class _Stream:
    """A text stream that goes to /dev/null from the first write on that finds no reader."""

    def __init__(self, stream: TextIO, told: Callable[[], None]) -> None:
        self._stream = stream
        self._told = told

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    # tqdm looks for the progress bars of a stream, and this is the same stream.
    def __eq__(self, other: object) -> bool:
        return bool(self._stream == getattr(other, "_stream", other))

    def __hash__(self) -> int:
        return hash(self._stream)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._discard()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._discard()

    def _discard(self) -> None:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), self._stream.fileno())
        self._told()
