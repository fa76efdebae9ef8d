"""What the importers of other trainers' folders share: images, captions, and what they report."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairhuman.common.errors import DataError
from fairhuman.curation.annotation.detector import REGIONS
from fairhuman.curation.importers.mask_files import Mask
from fairhuman.curation.importers.orientation import Shape, read_shape
from fairhuman.data.captions import ENDINGS, Caption, CaptionFiles
from fairhuman.data.records import CONTROL, METADATA, SHOWN, Problem

Rows = Sequence[Mapping[str, Any]]


@dataclass
class ImportedFolder:
    """What an import wrote, and what of the folder has no counterpart here."""

    rows: Rows
    """Of metadata.jsonl."""
    notes: list[str] = field(default_factory=list)
    """One line each."""
    left_out: list[Problem] = field(default_factory=list)

    def lines(self, out: Path) -> list[str]:
        """Return a report; its last line names the next step."""
        captions = sum(bool(row["text"]) for row in self.rows)
        counts = [f"{len(self.rows)} images", f"{captions} captions"]
        for region in REGIONS:
            masks = sum(f"{region}_mask" in row for row in self.rows)
            boxes = sum(len(row.get(f"{region}s", ())) for row in self.rows)
            counts += [f"{masks} {region} masks"] * bool(masks)
            counts += [f"{boxes} {region}s"] * any(f"{region}s" in row for row in self.rows)
        controls = sum(CONTROL in row for row in self.rows)
        counts += [f"{controls} control images"] * bool(controls)
        lines = [f"{out}: {', '.join(counts)}", *self.notes]
        if captions < len(self.rows):
            lines.append(
                f"{len(self.rows) - captions} images have no caption: write it as the `text` of "
                f"their line in {out / METADATA}"
            )
        if self.left_out:
            lines += [f"{len(self.left_out)} left out:", *(f"  {one}" for one in self.left_out)]
        return [*lines, self._next(out)]

    def _next(self, out: Path) -> str:
        lacking = [
            f"{region}s"
            for region in REGIONS
            if not all(f"{region}s" in row or f"{region}_mask" in row for row in self.rows)
        ]
        if not lacking:
            return f"next: `fairhuman inspect {shlex.quote(str(out))}` shows the data set"
        return (
            f"next: `fairhuman annotate {shlex.quote(str(out))}` looks for "
            f"{' and '.join(lacking)} where the data set has none, and keeps the captions"
        )


def such_as(items: Sequence[str]) -> str:
    """Return a few of many names, for a message."""
    return ", ".join(items[:5]) + (f" and {len(items) - 5} more" if len(items) > 5 else "")


def readable_images(
    images: Path, names: Sequence[str], left_out: list[Problem]
) -> dict[str, Shape]:
    """Return the shapes of images by their heads; those that cannot be read go to `left_out`.

    Raises:
        DataError: there is none that can be read.
    """
    shapes = readable(images, names, left_out)
    if not shapes:
        raise DataError("\n".join([*map(str, left_out[:SHOWN]), f"{images}: holds no image"]))
    return shapes


def readable(folder: Path, names: Sequence[str], left_out: list[Problem]) -> dict[str, Shape]:
    """Return the shapes of pictures by their heads; those that cannot be read go to `left_out`."""

    def shape(name: str) -> Shape | Problem:
        try:
            return read_shape(folder / name)
        except DataError as error:
            return Problem(name, str(error).removeprefix(f"{folder / name}: "))

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:  # it waits for the disk
        found = dict(zip(names, pool.map(shape, names), strict=True))
    left_out += [one for one in found.values() if isinstance(one, Problem)]
    return {name: one for name, one in found.items() if isinstance(one, Shape)}


@dataclass(frozen=True)
class Captions:
    """The captions of images from the files next to them."""

    found: dict[str, Caption | None]
    """By the images' names; None: a file without words, or no file."""
    files: frozenset[str]
    """The images that have a file."""

    def text(self, name: str) -> str:
        """Return an image's caption, the first line: for these trainers each line is one."""
        caption = self.found[name]
        return caption.lines[0] if caption else ""

    def several(self) -> list[str]:
        """Return the images whose file has further lines."""
        return [name for name, caption in self.found.items() if caption and caption.lines[1:]]


def read_captions(
    images: Path,
    names: Sequence[str],
    left_out: list[Problem],
    endings: Sequence[str] = ENDINGS,
) -> Captions:
    """Read the caption files of images.

    Args:
        images: the folder.
        names: of the images in it.
        left_out: gets the further caption files of an image that say something else.
        endings: of the caption files.

    Raises:
        DataError: files that cannot be read, one line each (the first 20).
    """
    reader = CaptionFiles(endings)
    found: dict[str, Caption | None] = {}
    wrong: list[str] = []
    for name in names:
        try:
            found[name] = reader.read(images / name)
        except DataError as error:
            wrong.append(str(error))
    if wrong:
        more = [f"{images}: and {len(wrong) - SHOWN} more caption files"]
        raise DataError("\n".join(wrong[:SHOWN] + more * (len(wrong) > SHOWN)))
    left_out += [
        Problem(name, caption.passed_over())
        for name, caption in found.items()
        if caption and caption.others
    ]
    return Captions(found, frozenset(name for name in names if reader.find(images / name)))


def mask_notes(rows: Rows, region: str, bright: Sequence[str]) -> list[str]:
    """Return what is to be said of masks of a region: who lacks one, which are mostly white."""
    lacking = [row["file_name"] for row in rows if f"{region}_mask" not in row]
    notes = []
    if lacking:
        notes.append(f"{len(lacking)} images have no mask, such as {lacking[0]}: not annotated")
    if bright:
        notes.append(
            f"{len(bright)} masks are mostly white, such as {bright[0]}, which hardly any {region} "
            "is: look at them with `fairhuman inspect`"
        )
    return notes


def mostly_white(masks: Sequence[Mask]) -> list[str]:
    """Return the masks that are."""
    return [str(mask.path) for mask in masks if mask.mean > 0.5]
