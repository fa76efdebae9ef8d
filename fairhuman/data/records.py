"""The data set on disk: metadata.jsonl and the files it names, checked before training."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from fairhuman.common.errors import DataError
from fairhuman.common.files import write_text
from fairhuman.common.images import ImageError, open_image, open_mask
from fairhuman.common.json_text import JsonError, half_character, parse_lines
from fairhuman.common.quoting import shown
from fairhuman.config import Config
from fairhuman.data.regions import Annotation, Box

METADATA = "metadata.jsonl"
CONTROL = "conditioning_image"

# Boxes come from detectors and annotators that round: so far a box may stick out of the image.
TOLERANCE_PX = 1.0

# How many problems an error names.
SHOWN = 20

# Of one region in one image; more are no annotation, and take minutes to draw.
MOST_BOXES = 1000
# In bytes of UTF-8; longer names no system can open.
LONGEST_NAME = 4096


@dataclass(frozen=True)
class Record:
    """One image of the data set."""

    id: str
    """Its file name in metadata.jsonl: what the sample's random draws depend on."""
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
    within: Path | None = None
    """The folder that its files must be in; None: they may be anywhere."""


def read_entries(
    root: Path,
    regions: Sequence[str],
    *,
    unannotated: str = "error",
    columns: Mapping[str, str] | None = None,
    conditioned: bool = False,
    outside: str = "error",
) -> tuple[list[Entry], list[Problem]]:
    """Read metadata.jsonl.

    Args:
        root: the data set's folder.
        regions: the regions to read, such as "face": the keys `faces` and `face_mask`.
        unannotated: "error", or "absent" to take a missing key as "none here".
        columns: other names of the keys, by ours.
        conditioned: whether every line needs `conditioning_image`, which is not read otherwise.
        outside: "error", or "allow" for files that are not in the folder.

    Returns:
        The lines that can be read, in their order, and what is wrong with the others.

    Raises:
        DataError: the folder or its metadata.jsonl is not there or cannot be read.
    """
    within = root if outside == "error" else None
    entries: list[Entry] = []
    problems: list[Problem] = []
    seen: dict[str, str] = {}
    names = dict(columns or {})
    path = _metadata(root)
    for number, fields in read_lines(path):
        place = f"{path}:{number}"
        try:
            if isinstance(fields, LineError):
                raise fields
            name = _name(fields, names.get("file_name", "file_name"))
            if name in seen:
                raise LineError(f"{shown(name)} is listed already ({seen[name]})")
            seen[name] = place
            caption = _string(fields, names.get("text", "text"))
            annotations = {
                region: _annotation(fields, region, root, unannotated, names) for region in regions
            }
            control = root / _name(fields, names.get(CONTROL, CONTROL)) if conditioned else None
            entries.append(Entry(place, name, root / name, caption, annotations, control, within))
        except LineError as error:
            problems.append(Problem(place, str(error)))
    return entries, problems


def check_entries(entries: Sequence[Entry]) -> list[Record | Problem]:
    """Open every file that the entries name, whole; return a record or a problem for each."""
    # Decoding happens in C, outside Python's lock.
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return list(pool.map(_check, entries))


class LineError(Exception):
    """What is wrong with one line of metadata.jsonl."""


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | LineError]]:
    """Yield the numbers of metadata.jsonl's lines and what they hold, or why they hold no object.

    Raises:
        DataError: the file cannot be read.
    """
    for number, found in parse_lines(path, lenient=True):
        if isinstance(found, JsonError):
            yield number, LineError(str(found))
        elif isinstance(found, dict):
            yield number, found
        else:
            yield number, LineError("must be a JSON object")


def _metadata(root: Path) -> Path:
    """Return the path of metadata.jsonl; raise a DataError if it is not there."""
    path = root / METADATA
    try:
        if not root.is_dir():
            raise DataError(f"data.root = {str(root)!r}: there is no such folder")
        if not path.is_file():
            raise DataError(
                f"data.root = {str(root)!r}: holds no {METADATA} (one JSON object per image; see "
                "'Your own data' in the docs); `fairhuman annotate` writes one"
            )
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    return path


def _string(fields: dict[str, Any], key: str) -> str:
    if key not in fields:
        keys = ", ".join(map(shown, list(fields)[:20])) or "no keys"
        raise LineError(f"{key!r} is missing (it has {keys})")
    value = fields[key]
    if not isinstance(value, str):
        raise LineError(f"{key} = {shown(value)}: must be text")
    if half := half_character(value):
        raise LineError(
            f"{key} = {shown(value)}: holds {half}, one half of a character that UTF-16 writes in "
            "two: write the whole character, or leave it out"
        )
    return value


def _name(fields: dict[str, Any], key: str) -> str:
    """Return the name of a file."""
    value = _string(fields, key)
    if not value:
        raise LineError(f"{key} = '': must be text")
    if "\0" in value or len(value.encode()) > LONGEST_NAME:
        raise LineError(f"{key} = {shown(value)}: no file can have this name")
    return value


def _annotation(
    fields: dict[str, Any], region: str, root: Path, unannotated: str, names: dict[str, str]
) -> Annotation:
    boxes_key, mask_key = (names.get(key, key) for key in (f"{region}s", f"{region}_mask"))
    boxes, mask = fields.get(boxes_key), fields.get(mask_key)
    if boxes is None and mask is None:
        if unannotated == "error":
            raise LineError(
                f"neither {boxes_key!r} nor {mask_key!r} is there; write an empty list if the "
                f"image has no {region}, or set data.unannotated=absent"
            )
        return Annotation()
    # An empty name is none, as tools write it.
    file = root / _name(fields, mask_key) if mask not in (None, "") else None
    return Annotation(_boxes(boxes_key, [] if boxes is None else boxes), file)


def _boxes(key: str, value: Any) -> tuple[Box, ...]:
    if not isinstance(value, list):
        raise LineError(f"{key} = {shown(value)}: must be a list of [x, y, width, height]")
    if len(value) > MOST_BOXES:
        raise LineError(f"{key}: holds {len(value)} boxes, more than {MOST_BOXES}")
    return tuple(_box(key, box) for box in value)


def _box(key: str, box: Any) -> Box:
    numbers = isinstance(box, list) and all(
        isinstance(n, int | float) and not isinstance(n, bool) for n in box
    )
    if not numbers or len(box) != 4:
        raise LineError(f"{key}: {shown(box)} is not [x, y, width, height] in pixels")
    try:
        x, y, width, height = map(float, box)
    except OverflowError:  # a whole number of more than 308 digits
        raise LineError(f"{key}: {shown(box)} holds a number that is too large") from None
    if not all(map(math.isfinite, (x, y, width, height))):
        raise LineError(f"{key}: {shown(box)} holds a number that is not finite")
    if not (width > 0 and height > 0):
        raise LineError(f"{key}: {shown(box)} has no area (it must be [x, y, width, height])")
    return (x, y, width, height)


def _check(entry: Entry) -> Record | Problem:
    try:
        size = _opened(entry, "", entry.image, open_image).size
        for region, annotation in entry.regions.items():
            _check_boxes(region, annotation, size)
            if annotation.mask is not None:
                _check_like(entry, f"{region}_mask: ", annotation.mask, size, open_mask)
        if entry.conditioning:
            _check_like(entry, f"{CONTROL}: ", entry.conditioning, size, open_image)
    except LineError as error:
        return Problem(entry.place, str(error))
    return Record(entry.id, entry.image, entry.text, entry.regions, size, entry.conditioning)


def _opened(entry: Entry, key: str, path: Path, read: Callable[[Path], Image.Image]) -> Image.Image:
    if entry.within is not None and not _is_within(path, entry.within):
        raise LineError(
            f"{key}{path} is not in the data's folder: move or copy it there, or set "
            "data.outside=allow"
        )
    try:
        return read(path)
    except ImageError as error:
        raise LineError(f"{key}{path}: {error}") from None


def _is_within(path: Path, folder: Path) -> bool:
    """Return whether a file is in a folder, links followed."""
    real, root = os.path.realpath(path), os.path.realpath(folder)
    return real.startswith(root.rstrip(os.sep) + os.sep)


def _check_boxes(region: str, annotation: Annotation, size: tuple[int, int]) -> None:
    for box in annotation.boxes:
        x, y, width, height = box
        if max(box) <= 1 < max(size):
            raise LineError(
                f"{region}s: {list(box)} is given as shares of the image; boxes are [x, y, width, "
                f"height] in pixels: multiply by its width and height, {size[0]} x {size[1]} px"
            )
        far = max(-x, -y, x + width - size[0], y + height - size[1])
        if far > TOLERANCE_PX:
            raise LineError(
                f"{region}s: {list(box)} is outside the image of {size[0]} x {size[1]} px "
                "(boxes are [x, y, width, height] in pixels of the upright image)"
            )


def _check_like(
    entry: Entry,
    key: str,
    path: Path,
    size: tuple[int, int],
    read: Callable[[Path], Image.Image],
) -> None:
    """Check a picture that belongs to an image of this size."""
    found = _opened(entry, key, path, read).size
    if found != size:
        raise LineError(
            f"{key}{path} is {found[0]} x {found[1]} px, its image {size[0]} x {size[1]}"
        )


def load_records(
    root: Path,
    regions: Sequence[str],
    *,
    unannotated: str = "error",
    columns: Mapping[str, str] | None = None,
    conditioned: bool = False,
    outside: str = "error",
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
        outside: see `read_entries`.
        on_error: "fail", or "skip" to leave out the samples that cannot be used.
        check: opens the files; a trainer shares the work over its ranks.

    Returns:
        The records in the order of metadata.jsonl, and what was left out.

    Raises:
        DataError: every problem, one line each (the first 20), or a data set without a sample.
    """
    entries, problems = read_entries(
        root,
        regions,
        unannotated=unannotated,
        columns=columns,
        conditioned=conditioned,
        outside=outside,
    )
    checked = check(entries)
    records = [found for found in checked if isinstance(found, Record)]
    problems = problems + [found for found in checked if isinstance(found, Problem)]
    if problems and on_error == "fail":
        lines = [str(problem) for problem in problems[:SHOWN]]
        if len(problems) > SHOWN:
            lines.append(f"{root}: and {len(problems) - SHOWN} more")
        lines.append(f"{root}: correct these, or set data.on_error=skip to leave them out")
        raise DataError("\n".join(lines))
    if not records:
        lines = [str(problem) for problem in problems[:SHOWN]]
        why = f"({len(problems)} left out)" if problems else f"({METADATA} is empty)"
        lines.append(f"data.root = {str(root)!r}: holds no usable sample {why}")
        raise DataError("\n".join(lines))
    return records, problems


def records_of(
    config: Config, check: Callable[[Sequence[Entry]], list[Record | Problem]]
) -> tuple[list[Record], list[Problem]]:
    """Read and check the data set of a training config; see `load_records`."""
    return load_records(
        Path(config.data.root),
        config.objectives.regions,
        unannotated=config.data.unannotated,
        columns=config.data.columns,
        conditioned=config.model.conditioned,
        outside=config.data.outside,
        on_error=config.data.on_error,
        check=check,
    )


def check_held_out(count: int, usable: int) -> None:
    """Check that something is left to train on where `count` images are held out.

    Raises:
        DataError: nothing is.
    """
    if count >= usable:
        raise DataError(
            f"data.validation = {count}: the data set has {usable} usable images; hold out fewer"
        )


def write_metadata(root: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write metadata.jsonl, in place of what was there.

    Raises:
        OutputError: it cannot be written; what was there still is.
    """
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_text(root / METADATA, lines)
