"""A folder of photographs whose metadata.jsonl a command writes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from fairhuman.common.errors import DataError, OutputError
from fairhuman.common.lock import FolderLock
from fairhuman.data.folder import find_images, named_files, read_rows
from fairhuman.data.records import Problem


class Photographs(NamedTuple):
    """What a folder holds."""

    rows: list[dict[str, Any]]
    """Of metadata.jsonl."""
    names: list[str]
    """Of the images, relative to the folder."""
    left_out: list[Problem]
    """Files that look like images and cannot be used."""


@contextmanager
def written_to(root: Path, doing: str, verb: str) -> Iterator[None]:
    """Have a folder for this process alone.

    Args:
        root: the folder.
        doing: what is done with it, for another process that waits, such as "annotating".
        verb: the same as a request, for messages, such as "annotate".

    Raises:
        UserError: it is not there, cannot be written to, or another process has it.
    """
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder")
    if not os.access(root, os.W_OK):
        raise OutputError(f"{root}: cannot be written to: {verb} a copy of it")
    with FolderLock(root, doing):
        yield


def read_photographs(root: Path) -> Photographs:
    """Return a folder's rows and images.

    Raises:
        DataError: its metadata.jsonl cannot be read, or it holds no image.
    """
    rows = read_rows(root)
    names, left_out = find_images(root, exclude=named_files(rows))
    if not names:
        raise DataError(
            "\n".join([*map(str, left_out), f"{root}: holds no image (.jpg, .png, .webp, …)"])
        )
    return Photographs(rows, names, left_out)
