"""What the importers share: reading JSON and captions, boxes, and writing a whole data set."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairhuman.annotation.geometry import clip
from fairhuman.data.folder import caption_file, find_images, open_photograph
from fairhuman.data.records import METADATA, write_metadata
from fairhuman.errors import DataError, OutputError


@dataclass(frozen=True)
class Imported:
    """What an import wrote."""

    images: int
    faces: int
    hands: int
    missing: int = 0
    """Images that the annotations name and the folder does not hold."""
    unannotated: int = 0
    """Images without an annotation of theirs."""


def check_out(out: Path, images: Path) -> None:
    """Refuse to write over a data set.

    Raises:
        DataError: there is one in `out`, or no folder of images.
    """
    if (out / METADATA).exists():
        raise DataError(f"{out}: holds a data set already; choose another --out")
    if not images.is_dir():
        raise DataError(f"{images}: there is no such folder of images")


def write_data_set(
    out: Path,
    images: Path,
    rows: Sequence[Mapping[str, Any]],
    others: Mapping[str, Callable[[Path], None]] | None = None,
) -> None:
    """Copy the rows' images into `out` and write metadata.jsonl, or leave nothing there.

    Args:
        out: the data set's folder.
        images: where the images are, under the rows' file names.
        rows: of metadata.jsonl.
        others: further files by their name in `out`, and what writes each.

    Raises:
        OutputError: a file cannot be written.
    """
    made: list[Path] = []

    def place(name: str) -> Path:
        target = out / name
        missing = [folder for folder in target.parents if not folder.exists()]
        target.parent.mkdir(parents=True, exist_ok=True)
        made.extend(reversed(missing))
        if target.exists() and not target.samefile(images / name):
            raise OutputError(f"{target}: is there already; choose another --out")
        return target

    try:
        for row in rows:
            target = place(row["file_name"])
            if not target.exists():
                made.append(target)
                shutil.copyfile(images / row["file_name"], target)
        for name, write in (others or {}).items():
            target = place(name)
            made.append(target)
            write(target)
        out.mkdir(parents=True, exist_ok=True)
        write_metadata(out, rows)
    except (OSError, OutputError) as error:
        for path in reversed(made):
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink(missing_ok=True)
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{error.filename or out}: cannot be written: {error.strerror}") from None


def counts(rows: Sequence[Mapping[str, Any]], **more: int) -> Imported:
    """Return what rows hold."""
    faces, hands = (sum(len(row.get(key, ())) for row in rows) for key in ("faces", "hands"))
    return Imported(len(rows), faces, hands, **more)


def inside(box: Sequence[float], size: tuple[int, int]) -> list[float] | None:
    """Return the box cut to the image, rounded to a hundredth of a pixel."""
    x, y, width, height = box
    cut = clip((x, y, width, height), size)
    rounded = [round(value, 2) for value in cut or ()]
    return rounded if cut and rounded[2] > 0 and rounded[3] > 0 else None


def images_by_stem(images: Path) -> dict[str, str]:
    """Return the images' file names by their names without suffix.

    Raises:
        DataError: there is none, a folder cannot be read, or two have the same stem.
    """
    names, problems = find_images(images)
    if problems or not names:
        raise DataError("\n".join(map(str, problems)) or f"{images}: holds no image")
    found: dict[str, str] = {}
    for name in names:
        stem = name.rpartition(".")[0]
        if stem in found:
            raise DataError(
                f"{images}: {found[stem]} and {name} share a stem, so that their annotations "
                "cannot be told apart"
            )
        found[stem] = name
    return found


def upright_size(path: Path) -> tuple[int, int]:
    """Return an image's width and height, EXIF orientation applied; refuse what is unreadable."""
    return open_photograph(path).size


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from None


def texts(path: Path | None, names: Sequence[str], images: Path) -> dict[str, str]:
    """Return a caption per file name: from JSON lines, else from .txt files beside the images.

    Raises:
        DataError: the captions cannot be read, or an image has none in the file given.
    """
    if path is None:
        return {name: caption_file(images / name) or "" for name in names}
    found = caption_lines(path, _read_text(path))
    for name in names:
        if name not in found:
            raise DataError(f"{path}: has no caption for {name}")
    return found


def caption_lines(path: Path, text: str) -> dict[str, str]:
    """Read JSON lines with `file_name` and `text`.

    Raises:
        DataError: a line is something else.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            found[row["file_name"]] = row["text"]
        except (json.JSONDecodeError, KeyError, TypeError):
            raise DataError(
                f"{path}:{number}: is not a JSON object with file_name and text"
            ) from None
    return found


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None


def coco_captions(path: Path, names: Mapping[int, str]) -> dict[str, str]:
    """Return a caption per file name from COCO's captions JSON, its first; or from JSON lines."""
    text = _read_text(path)
    found: dict[str, str] = {}
    try:
        tree = json.loads(text)
        if "annotations" in tree:
            for caption in tree["annotations"]:
                if caption["image_id"] in names:
                    found.setdefault(names[caption["image_id"]], caption["caption"].strip())
            return found
    except json.JSONDecodeError:
        pass  # several lines, each an object of its own
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: is not COCO's captions format: {error!r}") from None
    return caption_lines(path, text)
