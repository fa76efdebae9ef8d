"""Which images a human has looked through, kept in the index's folder for the next start."""

from __future__ import annotations

import json
from pathlib import Path

from fairhuman.common.files import write_text
from fairhuman.common.json_text import JsonError, parse

NAME = "review.json"


class Progress:
    """The images that are done, and the one that was looked at last, by their file names.

    Args:
        folder: the index's.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self.at: str | None = None
        self.done: set[str] = set()
        try:
            kept = parse(self._path.read_bytes())
        except (OSError, JsonError):  # a first start, or a file that somebody damaged
            return
        if isinstance(kept, dict):
            done = kept.get("done")
            self.done = {name for name in done if isinstance(name, str)} if done else set()
            self.at = kept["at"] if isinstance(kept.get("at"), str) else None

    def go_to(self, name: str) -> None:
        """Remember the image that is looked at.

        Raises:
            OutputError: it cannot be written.
        """
        if self.at != name:
            self.at = name
            self._write()

    def mark(self, name: str, done: bool) -> None:
        """Remember that an image is done, or is not.

        Raises:
            OutputError: it cannot be written.
        """
        if (name in self.done) != done:
            (self.done.add if done else self.done.discard)(name)
            self._write()

    def _write(self) -> None:
        kept = {"at": self.at, "done": sorted(self.done)}
        write_text(self._path, json.dumps(kept, ensure_ascii=False))
