"""The data set on disk: metadata.jsonl and the files it names, checked before training."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from fairhuman.common.images import open_image, open_mask
from fairhuman.data.regions import Annotation, Box
from fairhuman.errors import DataError

METADATA = "metadata.jsonl"
CONTROL = "conditioning_image"

# Boxes come from detectors and annotators that round: so far a box may stick out of the image.
TOLERANCE_PX = 1.0

# How many problems an error names.
SHOWN = 20


@dataclass(frozen=True)
class Record:
    """One image of the data set."""

    id: str
    """Its file name in metadata.jsonl: what the sample's random draws hang on."""
    image: Path
    text: str
    regions: dict[str, Annotation]
    size: tuple[int, int]
    """Width and height, EXIF orientation applied."""
    conditioning: Path | None = None
    """The control image; None where the data set is read without them."""


@dataclass(frozen=True)
class Problem:
    """Why a sample cannot be used."""

    place: str
    """File, and line where there is one."""
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


@dataclass(frozen=True)
class Entry:
    """A line of metadata.jsonl whose text is right; its files have not been opened."""

    place: str
    id: str
    image: Path
    text: str
    regions: dict[str, Annotation]
    conditioning: Path | None = None


def read_entries(
    root: Path,
    regions: Sequence[str],
    *,
    unannotated: str = "error",
    columns: Mapping[str, str] | None = None,
    conditioned: bool = False,
) -> tuple[list[Entry], list[Problem]]:
    """Read metadata.jsonl.

    Args:
        root: the data set's folder.
        regions: the regions to read, such as "face": the keys `faces` and `face_mask`.
        unannotated: "error", or "absent" to take a missing key as "none here".
        columns: other names of the keys, by ours.
        conditioned: whether every line needs `conditioning_image`, which is not read otherwise.

    Returns:
        The lines that can be read, in their order, and what is wrong with the others.

    Raises:
        DataError: the folder or its metadata.jsonl is not there.
    """
    path = root / METADATA
    if not root.is_dir():
        raise DataError(f"data.root = {str(root)!r}: there is no such folder")
    if not path.is_file():
        raise DataError(
            f"data.root = {str(root)!r}: holds no {METADATA} (one JSON object per image; see the "
            "README, 'Your own data')"
        )
    entries: list[Entry] = []
    problems: list[Problem] = []
    seen: dict[str, str] = {}
    names = dict(columns or {})
    for place, line in _lines(path):
        try:
            fields = _fields(line)
            name = _string(fields, names.get("file_name", "file_name"))
            if name in seen:
                raise _LineError(f"{name!r} is there already ({seen[name]})")
            seen[name] = place
            caption = _string(fields, names.get("text", "text"), empty=True)
            annotations = {
                region: _annotation(fields, region, root, unannotated, names) for region in regions
            }
            control = root / _string(fields, names.get(CONTROL, CONTROL)) if conditioned else None
            entries.append(Entry(place, name, root / name, caption, annotations, control))
        except _LineError as error:
            problems.append(Problem(place, str(error)))
    return entries, problems


def check_entries(entries: Sequence[Entry]) -> list[Record | Problem]:
    """Open every file that the entries name, whole; return a record or a problem for each."""
    # Decoding happens in C, outside Python's lock.
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return list(pool.map(_check, entries))


class _LineError(Exception):
    """What is wrong with one line."""


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield f"{path}:{number}", line


def _fields(line: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise _LineError("is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise _LineError(f"is not JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(fields, dict):
        raise _LineError("must be a JSON object")
    return fields


def _string(fields: dict[str, Any], key: str, empty: bool = False) -> str:
    if key not in fields:
        raise _LineError(f"{key!r} is missing (it has {', '.join(map(repr, fields)) or 'no keys'})")
    value = fields[key]
    if not isinstance(value, str) or not (value or empty):
        raise _LineError(f"{key} = {value!r}: must be text")
    return value


def _annotation(
    fields: dict[str, Any], region: str, root: Path, unannotated: str, names: dict[str, str]
) -> Annotation:
    boxes_key, mask_key = (names.get(key, key) for key in (f"{region}s", f"{region}_mask"))
    boxes, mask = fields.get(boxes_key), fields.get(mask_key)
    if boxes is None and mask is None:
        if unannotated == "error":
            raise _LineError(
                f"neither {boxes_key!r} nor {mask_key!r} is there; write an empty list if the "
                f"image has no {region}, or set data.unannotated=absent"
            )
        return Annotation()
    if mask is not None and not isinstance(mask, str):
        raise _LineError(f"{mask_key} = {mask!r}: must be a file name")
    return Annotation(_boxes(boxes_key, boxes or []), root / mask if mask else None)


def _boxes(key: str, value: Any) -> tuple[Box, ...]:
    if not isinstance(value, list):
        raise _LineError(f"{key} = {value!r}: must be a list of [x, y, width, height]")
    boxes = []
    for box in value:
        numbers = isinstance(box, list) and all(
            isinstance(n, int | float) and not isinstance(n, bool) for n in box
        )
        if not numbers or len(box) != 4:
            raise _LineError(f"{key}: {box!r} is not [x, y, width, height] in pixels")
        x, y, width, height = box
        if not (width > 0 and height > 0):  # also refuses NaN
            raise _LineError(f"{key}: {box!r} has no area (it must be [x, y, width, height])")
        boxes.append((float(x), float(y), float(width), float(height)))
    return tuple(boxes)


def _check(entry: Entry) -> Record | Problem:
    size = _size(entry.image, open_image)
    if isinstance(size, str):
        return Problem(entry.place, size)
    for region, annotation in entry.regions.items():
        problem = _outside(region, annotation, size) or _mask_problem(region, annotation, size)
        if problem:
            return Problem(entry.place, problem)
    if entry.conditioning:
        problem = _unlike(CONTROL, entry.conditioning, size, open_image)
        if problem:
            return Problem(entry.place, problem)
    return Record(entry.id, entry.image, entry.text, entry.regions, size, entry.conditioning)


def _size(path: Path, read: Callable[[Path], Image.Image]) -> tuple[int, int] | str:
    if not path.is_file():
        return f"{path}: there is no such file"
    try:
        return read(path).size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return f"{path}: cannot be read as an image: {error}"


def _outside(region: str, annotation: Annotation, size: tuple[int, int]) -> str | None:
    for box in annotation.boxes:
        x, y, width, height = box
        far = max(-x, -y, x + width - size[0], y + height - size[1])
        if not far <= TOLERANCE_PX:
            return (
                f"{region}s: {list(box)} is outside the image of {size[0]} x {size[1]} px "
                "(boxes are [x, y, width, height] in pixels of the upright image)"
            )
    return None


def _mask_problem(region: str, annotation: Annotation, size: tuple[int, int]) -> str | None:
    if annotation.mask is None:
        return None
    return _unlike(f"{region}_mask", annotation.mask, size, open_mask)


def _unlike(
    key: str, path: Path, size: tuple[int, int], read: Callable[[Path], Image.Image]
) -> str | None:
    """Return what is wrong with a picture that belongs to an image of this size."""
    found = _size(path, read)
    if isinstance(found, str):
        return found
    if found != size:
        return f"{key}: {path} is {found[0]} x {found[1]} px, its image {size[0]} x {size[1]}"
    return None


def load_records(
    root: Path,
    regions: Sequence[str],
    *,
    unannotated: str = "error",
    columns: Mapping[str, str] | None = None,
    conditioned: bool = False,
    on_error: str = "fail",
    check: Callable[[Sequence[Entry]], list[Record | Problem]] = check_entries,
) -> tuple[list[Record], list[Problem]]:
    """Read and check a data set.

    Args:
        root: the data set's folder.
        regions: see `read_entries`; also `unannotated` and `columns`.
        unannotated: see `read_entries`.
        columns: see `read_entries`.
        conditioned: see `read_entries`.
        on_error: "fail", or "skip" to leave out the samples that cannot be used.
        check: opens the files; a trainer shares the work over its ranks.

    Returns:
        The records in the order of metadata.jsonl, and what was left out.

    Raises:
        DataError: every problem, one line each (the first 20), or a data set without a sample.
    """
    entries, problems = read_entries(
        root, regions, unannotated=unannotated, columns=columns, conditioned=conditioned
    )
    checked = check(entries)
    records = [found for found in checked if isinstance(found, Record)]
    problems = problems + [found for found in checked if isinstance(found, Problem)]
    if problems and on_error == "fail":
        lines = [str(problem) for problem in problems[:SHOWN]]
        if len(problems) > SHOWN:
            lines.append(f"{root}: and {len(problems) - SHOWN} more")
        lines.append(f"{root}: mend these, or set data.on_error=skip to leave them out")
        raise DataError("\n".join(lines))
    if not records:
        raise DataError(
            f"data.root = {str(root)!r}: holds no usable sample ({len(problems)} left out)"
        )
    return records, problems


def write_metadata(root: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write metadata.jsonl whole or not at all."""
    aside = root / f"{METADATA}.partial"
    with aside.open("w", encoding="utf-8") as lines:
        for row in rows:
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
    os.replace(aside, root / METADATA)
