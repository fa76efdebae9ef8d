"""What an unfinished run over a folder has found so far, so that it continues where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from fairhuman.common.files import write_text
from fairhuman.curation.annotation.marks import picture_digest

NAME = ".annotate.progress.jsonl"


class Journal:
    """A file of one JSON line per image, appended as images are done.

    Args:
        root: the data set's folder.
        by: the detector or model; what another one found is dropped.
        name: the file's, in the folder.
    """

    def __init__(self, root: Path, by: str, name: str = NAME) -> None:
        self.root = root
        self.path = root / name
        self.by = by
        self.found: dict[str, dict[str, Any]] = {}
        """By file name."""
        if self.path.is_file():
            for line in self.path.read_bytes().splitlines():
                self._take(line)

    def __enter__(self) -> Journal:
        # A line that was cut off must not have another one appended to it.
        write_text(self.path, "".join(map(_line, self.found.values())))
        self._file = self.path.open("a", encoding="utf-8")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def add(self, name: str, entry: dict[str, Any]) -> None:
        """Write down what was found in an image."""
        self.found[name] = {"file_name": name, "by": self.by, **entry}
        self._file.write(_line(self.found[name]))
        self._file.flush()

    def check_pictures(self, marked: Iterable[str]) -> dict[str, str | None]:
        """Forget the images whose files are others by now.

        Always by all bytes: size and time of a file prove nothing once it is copied back from
        somewhere, and reading an image takes a hundredth of the time of looking at it.

        Args:
            marked: further file names.

        Returns:
            The digests of all these files.
        """
        names = list({*marked, *self.found})
        # Hashing happens in C, outside Python's lock.
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            digests = pool.map(picture_digest, (self.root / name for name in names))
            pictures = dict(zip(names, digests, strict=True))
        self.found = {
            name: entry for name, entry in self.found.items() if pictures[name] == entry["picture"]
        }
        return pictures

    def remove(self) -> None:
        """Delete the file: the run is done."""
        self.path.unlink(missing_ok=True)

    def _take(self, line: bytes) -> None:
        try:
            entry = json.loads(line)
            name, picture = entry["file_name"], entry["picture"]
            # An image that could not be read may be readable now.
            taken = entry["by"] == self.by and isinstance(picture, str) and "found" in entry
        except (ValueError, KeyError, TypeError, RecursionError):
            return  # cut off
        if taken:
            self.found[name] = entry


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry, ensure_ascii=False) + "\n"
