"""The files of one checkpoint that this rank writes, at once or in a thread."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from fairhuman.common.digests import digests
from fairhuman.common.error_text import first_line
from fairhuman.common.errors import OutputError
from fairhuman.common.files import free_bytes
from fairhuman.common.units import GIB
from fairhuman.zero.host_copy import HostCopies


class OwnFiles:
    """This rank's part of a checkpoint.

    Args:
        folder: the checkpoint's, as errors call it.
        aside: where it is written.
        copies: the host's memory for what a thread is to write; None to write everything at once.
    """

    def __init__(self, folder: Path, aside: Path, copies: HostCopies | None) -> None:
        self.folder = folder
        self.aside = aside
        self.crowded = False
        """Whether something found no room in the host's memory, and was written at once."""
        self._copies = copies
        self._names: set[str] = set()
        self._later: list[Callable[[], object]] = []
        self._thread: threading.Thread | None = None
        self._digests: dict[str, str] = {}
        self._failed: Exception | None = None

    @property
    def writing(self) -> bool:
        """Whether the thread is at work."""
        return self._thread is not None and self._thread.is_alive()

    def add(self, write: Callable[[Any, Path], object], tree: Any, path: Path) -> None:
        """Have a tree of states written to a file: a copy of it by the thread, if there is room."""
        self.include([path])
        if self._copies:
            try:
                held = self._copies.copy(path.name, tree)
            except MemoryError:
                self.crowded = True
            else:
                self._later.append(functools.partial(write, held, path))
                return
        write(tree, path)

    def include(self, paths: Iterable[Path]) -> None:
        """Count files that are there already among this rank's."""
        self._names.update(path.relative_to(self.aside).as_posix() for path in paths)

    def start(self) -> None:
        """Let the thread write what was added."""
        if self._later:
            self._thread = threading.Thread(target=self._write, daemon=True)
            self._thread.start()

    def finish(self) -> dict[str, str]:
        """Return the digests of all files by their names, when they are on the disk.

        Raises:
            OutputError: one could not be written.
        """
        if self._thread:
            self._thread.join()
        else:
            self._write()
        if self._failed:
            raise self._failed
        return self._digests

    def _write(self) -> None:
        try:
            with writes(self.folder):
                while self._later:
                    self._later.pop(0)()  # and let go of the copy
                self._digests = digests(self.aside, sorted(self._names))
        except Exception as error:  # of any kind: `finish` raises it where it is waited for
            self._failed = error


@contextmanager
def writes(folder: Path) -> Iterator[None]:
    """Turn what a disk says into an OutputError."""
    try:
        yield
    # torch.save turns a full disk into RuntimeError, safetensors into its own.
    except (OSError, RuntimeError, SafetensorError) as error:
        raise OutputError(
            f"{folder}: the checkpoint could not be written{_free(folder)} ({first_line(error)}); "
            "the checkpoints before it are whole"
        ) from error


def _free(folder: Path) -> str:
    """Return how much room the disk has, in words; nothing where it does not tell."""
    try:
        return f" with {free_bytes(folder) / GIB:.2f} GiB of disk free"
    except OSError:
        return ""
