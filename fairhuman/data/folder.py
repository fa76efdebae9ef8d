"""A data set's folder before it is one: its images, its rows as they are, its caption files."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from fairhuman.common.images import open_image
from fairhuman.data.records import METADATA, SHOWN, LineError, Problem, parse_line
from fairhuman.errors import DataError

SUFFIXES = frozenset((".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))

# Folders beside the images that hold something else.
MASKS = "masks"

# What Pillow's readers raise for broken files.
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    MemoryError,
    Image.DecompressionBombError,
)


def find_images(root: Path, exclude: Sequence[str] = ()) -> tuple[list[str], list[Problem]]:
    """Return the file names of the images below a folder, sorted, relative to it.

    Hidden files and the top folder `masks` are left out.

    Args:
        root: the folder.
        exclude: file names that are something else, such as masks and control images.

    Returns:
        The names, and the folders below that cannot be read.

    Raises:
        DataError: the folder is not there or cannot be read.
    """
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder")
    problems: list[Problem] = []

    def unreadable(error: OSError) -> None:
        if Path(error.filename) == root:
            raise DataError(f"{root}: cannot be read: {error.strerror}")
        problems.append(Problem(str(error.filename), f"cannot be read: {error.strerror}"))

    left_out = {str(PurePosixPath(name)) for name in exclude}
    names = []
    for folder, below, files in os.walk(root, onerror=unreadable):
        place = Path(folder)
        top = place == root
        below[:] = [name for name in below if name[0] != "." and not (top and name == MASKS)]
        for file in files:
            name = (place / file).relative_to(root).as_posix()
            if file[0] == "." or Path(file).suffix.lower() not in SUFFIXES or name in left_out:
                continue
            if not _encodable(name):
                problems.append(Problem(repr(name), "its name is not UTF-8: rename it"))
                continue
            names.append(name)
    return sorted(names), problems


def read_rows(root: Path, key: str = "file_name") -> list[dict[str, Any]]:
    """Return the rows of metadata.jsonl with every key as it is; none where there is no file.

    Args:
        root: the data set's folder.
        key: what the file names are under.

    Raises:
        DataError: a row cannot be read, names no file, or names one that is there already.
    """
    rows, problems = scan_rows(root, key)
    if problems:
        raise DataError("\n".join(map(str, problems[:SHOWN])))
    return rows


def scan_rows(root: Path, key: str = "file_name") -> tuple[list[dict[str, Any]], list[Problem]]:
    """Return the rows that can be read, and what is wrong with the others; see `read_rows`."""
    path = root / METADATA
    if not path.exists():
        return [], []
    rows: list[dict[str, Any]] = []
    problems: list[Problem] = []
    seen: dict[str, int] = {}
    for number, row in _parsed(path):
        place = f"{path}:{number}"
        name = row.get(key) if isinstance(row, dict) else None
        if isinstance(row, str):
            problems.append(Problem(place, row))
        elif not isinstance(name, str) or not name:
            problems.append(Problem(place, f"must be a JSON object with {key!r}"))
        elif name in seen:
            problems.append(Problem(place, f"{name!r} is there already (line {seen[name]})"))
        else:
            seen[name] = number
            rows.append(row)
    return rows, problems


def _parsed(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield line numbers with what the lines hold; a string says what is wrong with one."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            yield number, parse_line(line)
        except LineError as error:
            yield number, str(error)


def named_files(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the masks and control images that rows name: they are no images to train on."""
    return [
        value
        for row in rows
        for key, value in row.items()
        if isinstance(value, str) and (key.endswith("_mask") or key == "conditioning_image")
    ]


def caption_file(image: Path) -> str | None:
    """Return the text of the .txt file of the same name, or None where there is none.

    Raises:
        DataError: it cannot be read.
    """
    path = image.with_suffix(".txt")
    if not path.is_file():
        return None
    try:
        return " ".join(path.read_text(encoding="utf-8-sig").split())
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def open_photograph(path: Path) -> Image.Image:
    """Read an image as the trainer does.

    Raises:
        DataError: it cannot be read, or would not look as it should.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    try:
        with warnings.catch_warnings():
            # Large is no mistake; beyond twice Pillow's limit it raises an error.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return open_image(path)
    except UNREADABLE as error:
        raise DataError(f"{path}: cannot be read as an image: {error or 'too large'}") from None


def _encodable(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
