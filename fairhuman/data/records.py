"""The records of a data set: its rows and the files they name, checked before training."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairhuman.common.errors import DataError
from fairhuman.common.files import write_text
from fairhuman.common.images import ImageError, open_image, open_mask
from fairhuman.common.json_text import half_character
from fairhuman.common.quoting import shown
from fairhuman.common.readable import Readable
from fairhuman.config import Config, Source
from fairhuman.data.regions import Annotation, Box
from fairhuman.data.stores.choose import open_store
from fairhuman.data.stores.folder import METADATA
from fairhuman.data.stores.store import LineError, Store

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
    """Its `file_name`: what the sample's random draws depend on."""
    image: Readable
    text: str
    regions: dict[str, Annotation]
    size: tuple[int, int]
    """Width and height, EXIF orientation applied."""
    conditioning: Readable | None = None
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
    """A row whose text is right; its files have not been opened."""

    place: str
    id: str
    image: Readable
    text: str
    regions: dict[str, Annotation]
    conditioning: Readable | None = None
    within: Store | None = None
    """The data set that its files must belong to; None: they may be anywhere."""


@dataclass(frozen=True)
class Reading:
    """How the rows of a data set are read."""

    regions: Sequence[str]
    """The regions to read, such as "face": the keys `faces` and `face_mask`."""
    unannotated: str = "error"
    """"error", or "absent" to take a missing key as "none here"."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Other names of the keys, by ours."""
    conditioned: bool = False
    """Whether every line needs `conditioning_image`, which is not read otherwise."""
    outside: str = "error"
    """"error", or "allow" for files that are not in the folder."""
    caption_prefix: str = ""
    """Put before every caption, with a space between."""

    @classmethod
    def of(cls, config: Config, source: Source | None = None) -> Reading:
        """Return how a training config reads a data set: one of its sources, or another one."""
        data = config.data
        columns = data.columns if source is None or source.columns is None else source.columns
        return cls(
            config.objectives.regions,
            data.unannotated,
            columns,
            config.model.conditioned,
            data.outside,
            source.caption_prefix if source else "",
        )


def iter_entries(store: Store, reading: Reading) -> Iterator[tuple[int, Entry | Problem]]:
    """Yield the rows of a data set: their numbers, and what they hold or what is wrong.

    Raises:
        DataError: they cannot be read.
    """
    seen: dict[str, int] = {}
    for number, place, fields in store.lines():
        try:
            if isinstance(fields, LineError):
                raise fields
            name = _name(fields, reading.columns.get("file_name", "file_name"))
            if name in seen:
                raise LineError(f"{shown(name)} is listed already ({store.place(seen[name])})")
            seen[name] = number
            yield number, read_entry(fields, place, store, reading)
        except LineError as error:
            yield number, Problem(place, str(error))


def read_entry(fields: dict[str, Any], place: str, store: Store, reading: Reading) -> Entry:
    """Return what one row holds.

    Raises:
        LineError: a key is missing or holds what it must not.
    """
    names = dict(reading.columns)
    image_key = names.get(store.image_key, store.image_key)
    caption = _string(fields, names.get("text", "text"))
    if reading.caption_prefix:
        caption = f"{reading.caption_prefix} {caption}".rstrip()
    annotations = {
        region: _annotation(fields, region, store, reading.unannotated, names)
        for region in reading.regions
    }
    control = None
    if reading.conditioned:
        control = store.file(_name(fields, names.get(CONTROL, CONTROL)))
    return Entry(
        place,
        id=_name(fields, names.get("file_name", "file_name")),
        image=store.file(_name(fields, image_key)),
        text=caption,
        regions=annotations,
        conditioning=control,
        within=store if reading.outside == "error" else None,
    )


def read_entries(store: Store, reading: Reading) -> tuple[list[Entry], list[Problem]]:
    """Return what `iter_entries` yields: what can be read, and what is wrong with the rest."""
    found: list[Entry] = []
    problems: list[Problem] = []
    for _, entry in iter_entries(store, reading):
        if isinstance(entry, Entry):
            found.append(entry)
        else:
            problems.append(entry)
    return found, problems


def check_entries(entries: Sequence[Entry]) -> list[Record | Problem]:
    """Open every file that the entries name, whole; return a record or a problem for each."""
    # Decoding happens in C, outside Python's lock.
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return list(pool.map(check_entry, entries))


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
    fields: dict[str, Any], region: str, store: Store, unannotated: str, names: dict[str, str]
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
    file = store.file(_name(fields, mask_key)) if mask not in (None, "") else None
    return Annotation(read_boxes(boxes_key, [] if boxes is None else boxes), file)


def read_boxes(key: str, value: Any) -> tuple[Box, ...]:
    """Return what metadata.jsonl has under the key of a region's boxes.

    Raises:
        LineError: it is no list of boxes.
    """
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


Measure = Callable[[Readable, bool], tuple[int, int]]
"""Returns the size of a picture, given its path and whether it is a mask, or raises ImageError."""


def check_entry(entry: Entry, measure: Measure | None = None) -> Record | Problem:
    """Check an entry against its files; by default each is opened, whole."""
    sizes = measure or _decoded
    try:
        size = _measured(entry, "", entry.image, False, sizes)
        for region, annotation in entry.regions.items():
            check_boxes(region, annotation.boxes, size)
            if annotation.mask is not None:
                _check_like(entry, f"{region}_mask: ", annotation.mask, True, size, sizes)
        if entry.conditioning:
            _check_like(entry, f"{CONTROL}: ", entry.conditioning, False, size, sizes)
    except LineError as error:
        return Problem(entry.place, str(error))
    return Record(entry.id, entry.image, entry.text, entry.regions, size, entry.conditioning)


def _decoded(path: Readable, is_mask: bool) -> tuple[int, int]:
    return (open_mask if is_mask else open_image)(path).size


def _measured(
    entry: Entry, key: str, path: Readable, is_mask: bool, measure: Measure
) -> tuple[int, int]:
    if entry.within is not None and not entry.within.holds(path):
        raise LineError(
            f"{key}{path} is not in the data's folder: move or copy it there, or set "
            "data.outside=allow"
        )
    try:
        return measure(path, is_mask)
    except ImageError as error:
        raise LineError(f"{key}{path}: {error}") from None


def check_boxes(region: str, boxes: Sequence[Box], size: tuple[int, int]) -> None:
    """Check that a region's boxes are in an image of this size.

    Raises:
        LineError: one is outside it, or given as shares of it.
    """
    for box in boxes:
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
    entry: Entry, key: str, path: Readable, is_mask: bool, size: tuple[int, int], measure: Measure
) -> None:
    """Check a picture that belongs to an image of this size."""
    found = _measured(entry, key, path, is_mask, measure)
    if found != size:
        raise LineError(
            f"{key}{path} is {found[0]} x {found[1]} px, its image {size[0]} x {size[1]}"
        )


def load_records(
    root: Path, reading: Reading, *, on_error: str = "fail"
) -> tuple[list[Record], list[Problem]]:
    """Read a data set and open all its files, for a command; a run reads it by `data.index`.

    Args:
        root: the data set's folder.
        reading: how its lines are read.
        on_error: "fail", or "skip" to leave out the samples that cannot be used.

    Returns:
        The records in the order of the data set's rows, and what was left out.

    Raises:
        DataError: every problem, one line each (the first 20), or a data set without a sample.
    """
    store = open_store(root, columns=reading.columns)
    entries, problems = read_entries(store, reading)
    checked = check_entries(entries)
    records = [found for found in checked if isinstance(found, Record)]
    problems += [found for found in checked if isinstance(found, Problem)]
    refuse_unusable(store, len(records), problems, on_error)
    return records, problems


def refuse_unusable(
    store: Store, usable: int, problems: Sequence[Problem], on_error: str, section: str = "data"
) -> None:
    """Check that a data set has something to train on and, unless told to skip, nothing wrong.

    Args:
        store: the data set's.
        usable: how many of its samples can be used.
        problems: why the others cannot.
        on_error: "fail", or "skip" to leave these out.
        section: of the config, that names the data set.

    Raises:
        DataError: every problem, one line each (the first 20), or a data set without a sample.
    """
    if problems and on_error == "fail":
        root = store.root if section == "data" else f"{section}.root = {str(store.root)!r}"
        lines = [str(problem) for problem in problems[:SHOWN]]
        if len(problems) > SHOWN:
            lines.append(f"{root}: and {len(problems) - SHOWN} more")
        lines.append(f"{root}: correct these, or set data.on_error=skip to leave them out")
        raise DataError("\n".join(lines))
    if not usable:
        lines = [str(problem) for problem in problems[:SHOWN]]
        why = f"({len(problems)} left out)" if problems else f"({store.rows_are_in} is empty)"
        lines.append(f"{section}.root = {str(store.root)!r}: holds no usable sample {why}")
        raise DataError("\n".join(lines))


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
