"""A data set's folder before it is one: its images, and its rows as they are."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from fairhuman.common.errors import DataError
from fairhuman.common.images import SUFFIXES, UNOPENABLE, ImageError, open_image
from fairhuman.common.json_text import half_character
from fairhuman.common.quoting import shown
from fairhuman.common.readable import Readable
from fairhuman.data.records import SHOWN, Problem
from fairhuman.data.stores.folder import METADATA, read_lines
from fairhuman.data.stores.store import LineError

# Folders next to the images that hold something else.
MASKS = "masks"

# How the stems of pictures end that belong to a photograph, as OneTrainer names them.
MASK_ENDING = "-masklabel"
CONTROL_ENDING = "-condlabel"
LABEL_ENDINGS = (MASK_ENDING, CONTROL_ENDING)


def find_images(root: Path, exclude: Sequence[str] = ()) -> tuple[list[str], list[Problem]]:
    """Return the file names of the images below a folder, sorted, relative to it.

    Hidden files, the top folder `masks`, and OneTrainer's masks and control images
    (`a-masklabel.png`, `a-condlabel.png`) are left out.

    Args:
        root: the folder.
        exclude: file names that are something else, such as masks and control images.

    Returns:
        The names; and what cannot be taken: folders that cannot be read or are links, pictures of
        a format that is not opened.

    Raises:
        DataError: the folder is not there or cannot be read.
    """
    left_out = {str(PurePosixPath(name)) for name in exclude}
    names, problems = _find(root)
    return [
        name for name in names if name not in left_out and not _ends(name, LABEL_ENDINGS)
    ], problems


def find_labels(root: Path, endings: tuple[str, ...] = LABEL_ENDINGS) -> list[str]:
    """Return the pictures below a folder whose names end so before the suffix, sorted."""
    return [name for name in _find(root)[0] if _ends(name, endings)]


def _ends(name: str, endings: tuple[str, ...]) -> bool:
    return PurePosixPath(name).stem.lower().endswith(endings)


def _find(root: Path) -> tuple[list[str], list[Problem]]:
    """Return all pictures below a folder, and what cannot be taken."""
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder")
    problems: list[Problem] = []

    def unreadable(error: OSError) -> None:
        if Path(error.filename) == root:
            raise DataError(f"{root}: cannot be read: {error.strerror}")
        problems.append(Problem(str(error.filename), f"cannot be read: {error.strerror}"))

    names = []
    for folder, below, files in os.walk(root, onerror=unreadable):
        place = Path(folder)
        top = place == root
        below[:] = sorted(name for name in below if name[0] != "." and not (top and name == MASKS))
        for name in below:
            if (place / name).is_symlink():
                message = "is a link to a folder, which is not entered: move the images in"
                problems.append(Problem((place / name).relative_to(root).as_posix(), message))
        for file in sorted(files):
            name = (place / file).relative_to(root).as_posix()
            suffix = Path(file).suffix.lower()
            if file[0] == "." or suffix not in SUFFIXES | UNOPENABLE:
                continue
            if not _encodable(name):
                problems.append(Problem(shown(name), "its name is not UTF-8: rename it"))
            elif suffix in UNOPENABLE:
                message = f"{suffix} pictures are not opened: convert it to .jpg or .png"
                problems.append(Problem(name, message))
            else:
                names.append(name)
    return sorted(names), problems


def read_rows(root: Path, key: str = "file_name") -> list[dict[str, Any]]:
    """Return the rows of metadata.jsonl with every key as it is; none where there is no file.

    Args:
        root: the data set's folder.
        key: what the file names are under.

    Raises:
        DataError: a row cannot be read, names no file, or names one that an earlier row names.
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
    for number, row in read_lines(path):
        place = f"{path}:{number}"
        if isinstance(row, LineError):
            problems.append(Problem(place, str(row)))
            continue
        name = row.get(key)
        if not isinstance(name, str) or not name:
            problems.append(Problem(place, f"must be a JSON object with {key!r}"))
        elif name in seen:
            problems.append(Problem(place, f"{shown(name)} is listed already (line {seen[name]})"))
        elif half := half_character(json.dumps(row, ensure_ascii=False)):
            problems.append(Problem(place, f"holds {half}, half a character: write the whole one"))
        else:
            seen[name] = number
            rows.append(row)
    return rows, problems


def named_files(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the masks and control images that rows name: they are no images to train on."""
    return [
        value
        for row in rows
        for key, value in row.items()
        if isinstance(value, str) and (key.endswith("_mask") or key == "conditioning_image")
    ]


def open_photograph(path: Readable) -> Image.Image:
    """Read an image as the trainer does.

    Raises:
        DataError: it cannot be read, or would not look as it should.
    """
    try:
        return open_image(path)
    except ImageError as error:
        raise DataError(f"{path}: {error}") from None


def _encodable(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
