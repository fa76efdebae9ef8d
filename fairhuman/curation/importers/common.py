"""What the importers share: reading JSON and captions, boxes, and writing a whole data set."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairhuman.common.error_text import first_line, reason
from fairhuman.common.errors import DataError, OutputError
from fairhuman.common.json_text import JsonError, parse, parse_lines
from fairhuman.common.quoting import shown
from fairhuman.curation.geometry import clip
from fairhuman.data.captions import CaptionFiles
from fairhuman.data.folder import find_images
from fairhuman.data.records import CONTROL, METADATA, SHOWN, Problem, write_metadata

# Further from the image than this, a coordinate is no place in a picture.
FAR = 1e7


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
    left_out: list[Problem] = field(default_factory=list)
    """What of the images' folder could not be taken."""


def check_out(out: Path, images: Path) -> None:
    """Refuse to write over a data set.

    Raises:
        DataError: there is one in `out`, or no folder of images.
    """
    if os.path.lexists(out / METADATA):
        raise DataError(f"{out}: holds a data set already; choose another --out")
    if not images.is_dir():
        raise DataError(f"{images}: there is no such folder of images")


def write_data_set(
    out: Path,
    images: Path,
    rows: Sequence[Mapping[str, Any]],
    others: Mapping[str, Callable[[Path], None]] | None = None,
) -> None:
    """Put the rows' images into `out` and write metadata.jsonl, or leave nothing there.

    Images and control images become hard links, which take no room, or copies where `out` is on
    another disk.

    Args:
        out: the data set's folder.
        images: where both are, under the rows' file names.
        rows: of metadata.jsonl.
        others: what writes a file, by its name in `out`: further files, and images that are not to
            be as they are in `images`.

    Raises:
        OutputError: a file cannot be written, or would lie outside `out`.
    """
    made: list[Path] = []
    others = others or {}

    def place(name: str) -> Path:
        target = out / name
        missing = [folder for folder in target.parents if not folder.exists()]
        target.parent.mkdir(parents=True, exist_ok=True)
        made.extend(reversed(missing))
        if not Path(os.path.realpath(target)).is_relative_to(os.path.realpath(out)):
            raise OutputError(
                f"{target}: is a link, or in a linked folder, that leads out of {out}; choose "
                "another --out"
            )
        if target.exists() and (name in others or not target.samefile(images / name)):
            raise OutputError(f"{target}: already exists; choose another --out")
        return target

    try:
        pictures = (row[key] for row in rows for key in ("file_name", CONTROL) if key in row)
        for name in (name for name in pictures if name not in others):
            target = place(name)
            if not target.exists():
                made.append(target)
                _link_or_copy(images / name, target)
        for name, write in others.items():
            target = place(name)
            made.append(target)
            write(target)
        out.mkdir(parents=True, exist_ok=True)
        write_metadata(out, rows)
    except BaseException as error:
        for path in reversed(made):
            # The first error is the one to show; a folder may hold something of others by now.
            with suppress(OSError):
                path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OutputError(
                f"{error.filename or out}: cannot be written: {reason(error)}"
            ) from None
        raise


def _link_or_copy(source: Path, target: Path) -> None:
    # A link to the file itself: symlinks out of the data set are refused in training.
    source = Path(os.path.realpath(source))
    try:
        os.link(source, target)
    except OSError:  # another disk, a file system without links, a file of somebody else's
        shutil.copyfile(source, target)


def counts(rows: Sequence[Mapping[str, Any]], **more: Any) -> Imported:
    """Return what rows hold, with further fields of `Imported`."""
    faces, hands = (sum(len(row.get(key, ())) for row in rows) for key in ("faces", "hands"))
    return Imported(len(rows), faces, hands, **more)


@contextmanager
def at(place: str) -> Iterator[None]:
    """Say of what a JSON tree lacks, or has of another type, where in the tree it is.

    Args:
        place: such as "annotations[3]".

    Raises:
        ValueError: the body met something that is not as the format has it; one line.
    """
    try:
        yield
    except DataError:
        raise
    except KeyError as error:
        raise ValueError(f"{place} lacks {shown(error.args[0])}") from None
    except (TypeError, AttributeError, ValueError, OverflowError) as error:
        raise ValueError(f"{place}: {first_line(error)[:200]}") from None


def listed(tree: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """Return the objects that a JSON tree has under a key.

    Raises:
        ValueError: it has no list of objects there.
    """
    items = tree.get(key)
    if not isinstance(items, list):
        raise ValueError(f"{key}: must be a list of objects")
    for number, item in enumerate(items):
        if not isinstance(item, dict):
            raise ValueError(f"{key}[{number}]: is {shown(item)}, not an object")
    return items


def inside(box: Sequence[float], size: tuple[int, int]) -> list[float] | None:
    """Return the box cut to the image, rounded to a hundredth of a pixel."""
    x, y, width, height = box
    cut = clip((x, y, width, height), size)
    rounded = [round(value, 2) for value in cut or ()]
    return rounded if cut and rounded[2] > 0 and rounded[3] > 0 else None


def numbers(value: Any, key: str, count: int) -> list[float]:
    """Return a list of numbers in pixels as floats.

    Raises:
        ValueError: it is something else, or holds NaN or a number beyond any picture.
    """
    if (
        not isinstance(value, list)
        or len(value) != count
        or any(isinstance(n, bool) or not isinstance(n, int | float) for n in value)
        or not all(abs(n) <= FAR for n in value)  # also refuses NaN
    ):
        raise ValueError(f"{key} = {shown(value)}: must be {count} numbers in pixels")
    return [float(n) for n in value]


def images_by_stem(images: Path) -> tuple[dict[str, str], list[Problem]]:
    """Return the images' file names by their names without suffix, and what cannot be taken.

    Raises:
        DataError: there is none, or two have the same stem.
    """
    names, problems = find_images(images)
    if not names:
        raise DataError("\n".join([*map(str, problems[:SHOWN]), f"{images}: holds no image"]))
    return by_stem(images, names), problems


def by_stem(folder: Path, names: Sequence[str], ending: str = "") -> dict[str, str]:
    """Return file names by their names without suffix and ending.

    Raises:
        DataError: two have the same.
    """
    found: dict[str, str] = {}
    for name in names:
        stem = name.rpartition(".")[0]
        stem = stem[: len(stem) - len(ending)]
        if stem in found:
            raise DataError(
                f"{folder}: {found[stem]} and {name} share a stem, so that their annotations "
                "cannot be told apart"
            )
        found[stem] = name
    return found


def read_json(path: Path, *, constants: bool = False) -> Any:
    """Read a JSON file; see `json_text.parse`.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return parse(path.read_bytes(), constants=constants)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except JsonError as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from None


def texts(
    path: Path | None, names: Sequence[str], images: Path, left_out: list[Problem]
) -> dict[str, str]:
    """Return a caption per file name: from JSON lines, else from the images' caption files.

    Args:
        path: of the JSON lines.
        names: of the images,
        images: in their folder.
        left_out: gets what was passed over: further captions of the same image.

    Raises:
        DataError: the captions cannot be read, or an image has none in the file given.
    """
    if path is None:
        files = CaptionFiles()
        read = {name: files.read(images / name) for name in names}
        left_out += [
            Problem(name, caption.passed_over())
            for name, caption in read.items()
            if caption and caption.others
        ]
        return {name: caption.text if caption else "" for name, caption in read.items()}
    found = caption_lines(path)
    for name in names:
        if name not in found:
            raise DataError(f"{path}: has no caption for {name}")
    return found


def caption_lines(path: Path) -> dict[str, str]:
    """Read JSON lines with `file_name` and `text`.

    Raises:
        DataError: a line is something else, or names a file that an earlier line names.
    """
    found: dict[str, str] = {}
    for number, row in parse_lines(path):
        name, text = (
            (row.get("file_name"), row.get("text")) if isinstance(row, dict) else (None, None)
        )
        if not isinstance(name, str) or not isinstance(text, str):
            detail = f": it {row}" if isinstance(row, JsonError) else ""
            raise DataError(
                f"{path}:{number}: is not a JSON object with file_name and text{detail}"
            )
        if name in found:
            raise DataError(f"{path}:{number}: {shown(name)} has a caption on an earlier line")
        found[name] = text
    return found


def coco_captions(path: Path, names: Mapping[int, str]) -> dict[str, str]:
    """Return a caption per file name from COCO's captions JSON, its first; or from JSON lines.

    Raises:
        DataError: it is neither.
    """
    try:
        tree = parse(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except JsonError:
        return caption_lines(path)  # several lines, each an object of its own
    if not isinstance(tree, dict) or "annotations" not in tree:
        return caption_lines(path)
    found: dict[str, str] = {}
    try:
        for number, caption in enumerate(listed(tree, "annotations")):
            with at(f"annotations[{number}]"):
                key, text = caption["image_id"], caption["caption"].strip()
                if key in names:
                    found.setdefault(names[key], text)
    except ValueError as error:
        raise DataError(f"{path}: is not COCO's captions format: {error}") from None
    return found
