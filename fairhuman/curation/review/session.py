"""A data set under review: its images in order, their state, and saving what a human changed."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from fairhuman.common.errors import DataError, OutputError
from fairhuman.common.images import ImageError, upright_size
from fairhuman.common.lock import FolderLock
from fairhuman.common.quoting import shown
from fairhuman.curation.annotation.marks import (
    Owner,
    owner,
    picture_digest,
    put_by_human,
    put_text_by_human,
)
from fairhuman.curation.inspection.findings import Finding
from fairhuman.curation.inspection.inspect import View
from fairhuman.curation.inspection.rows import Sample
from fairhuman.curation.review import pictures
from fairhuman.curation.review.assess import (
    UNLISTED,
    assess,
    assess_all,
    check_row,
    placement_of,
)
from fairhuman.curation.review.edit import Edit, RegionEdit
from fairhuman.curation.review.progress import Progress
from fairhuman.curation.review.rows import Rows, version
from fairhuman.curation.written_masks import write_mask
from fairhuman.data.folder import MASKS, find_images, named_files
from fairhuman.data.place import open_folder
from fairhuman.data.records import (
    METADATA,
    LineError,
    Problem,
    read_boxes,
)
from fairhuman.data.stores.folder import FolderStore

MAKER = "review"
"""The folder in `masks` of what is painted here."""
_PAINTED = re.compile(r".+\.[0-9a-f]{8}\.png")

State = dict[str, Any]
"""An image as the page has it; see `Session.state`."""


class NotThereError(Exception):
    """There is no such image, region or mask."""


class ConflictError(Exception):
    """Somebody else has changed the image since; `state` is what it is now."""

    def __init__(self, state: State) -> None:
        super().__init__("it has changed")
        self.state = state


class Session:
    """A data set under review, which no other process annotates meanwhile.

    Its methods may be called from several threads.

    Args:
        root: the data set's folder. Images that metadata.jsonl does not name are reviewed too.
        view: how the trainer sees it; regions that the rows have are added to its own.
        progress: show a bar where the start takes long.

    Raises:
        DataError: the folder is not there, holds no image, or a row cannot be read.
        OutputError: the folder cannot be written, or is in use.
    """

    def __init__(self, root: Path, view: View, *, progress: bool = True) -> None:
        if not root.is_dir():
            raise DataError(f"{root}: there is no such folder")
        if view.data.columns:
            raise DataError(
                f"data.columns = {shown(dict(view.data.columns))}: `fairhuman review` writes the "
                "standard keys: rename those of metadata.jsonl, or review without --config"
            )
        self.root = root
        self._lock = threading.Lock()
        self._closed = False
        self._folder_lock = FolderLock(root, "reviewing")
        try:
            self._rows = Rows(root)
            self.regions = regions_of(self._rows.all, view.regions)
            self.view = replace(view, regions=self.regions)
            self.samples = self._look(progress)
            self._numbers = {sample.name: sample.number for sample in self.samples}
            self._progress = Progress(open_folder(root, view.data.index))
            # By image: the masks that it had since the page saw it, so that undoing finds them.
            self._masks: dict[int, set[str]] = {}
            self._remove_unused()
        except BaseException:
            self._folder_lock.release()
            raise

    def _look(self, progress: bool) -> list[Sample]:
        rows = self._rows.all
        findings: list[list[Finding]] = []
        if (self.root / METADATA).exists():
            findings = assess_all(self.root, rows, self.view, progress=progress)
        named = {row["file_name"] for row in rows}
        names, _ = find_images(self.root, exclude=named_files(rows))
        unlisted = [name for name in names if name not in named]
        samples = [
            Sample(number, row["file_name"], findings=found)
            for number, (row, found) in enumerate(zip(rows, findings, strict=True))
        ]
        samples += [
            Sample(len(rows) + number, name, findings=[UNLISTED])
            for number, name in enumerate(unlisted)
        ]
        if not samples:
            raise DataError(f"{self.root}: holds no image (.jpg, .png, .webp, …)")
        return samples

    def close(self) -> None:
        """Give the folder free; a second call does nothing."""
        with self._lock:
            if not self._closed:
                self._closed = True
                try:
                    self._remove_unused()
                except DataError:
                    pass  # somebody has broken metadata.jsonl: what it names is not known
                finally:
                    self._folder_lock.release()

    def overview(self) -> dict[str, Any]:
        """Return the images, worst first, and where the last session ended."""
        with self._lock:
            ordered = sorted(self.samples, key=Sample.severity)
            return {
                "images": [self._entry(sample) for sample in ordered],
                "at": self._numbers.get(self._progress.at or ""),
                "regions": list(self.regions),
            }

    def _entry(self, sample: Sample) -> dict[str, Any]:
        return {
            "number": sample.number,
            "name": sample.name,
            "kinds": list(dict.fromkeys(finding.kind for finding in sample.findings)),
            "done": sample.name in self._progress.done,
        }

    def state(self, number: int) -> State:
        """Return an image as it is now: annotation, findings, size, crop, and a version.

        Raises:
            NotThereError: there is no such image.
            DataError: metadata.jsonl cannot be read any more.
        """
        with self._lock:
            return self._state(self._sample(number))

    def _state(self, sample: Sample) -> State:
        self._rows.refresh()
        row = self._rows.get(sample.name)
        size, crop, problem = self._assess(sample, row)
        regions = {region: self._region(row or {}, region) for region in self.regions}
        masks = self._masks.setdefault(sample.number, set())
        masks |= {found["mask"] for found in regions.values() if found and found["mask"]}
        text = (row or {}).get("text")
        return {
            **self._entry(sample),
            "version": version(row, self.regions, self.root),
            "size": size,
            "crop": crop,
            "problem": problem,
            "text": text if isinstance(text, str) else "",
            "regions": regions,
            "findings": [[found.kind, found.text] for found in sample.findings],
        }

    def _assess(
        self, sample: Sample, row: dict[str, Any] | None
    ) -> tuple[tuple[int, int] | None, list[float] | None, str | None]:
        """Find out what is wrong with an image; return its size, its crop and why none is seen."""
        problem = None
        size: tuple[int, int] | None = None
        try:
            size = upright_size(self._inside(sample.name))
        except (DataError, ImageError) as error:
            problem = str(error)
        if row is None:
            sample.findings = [UNLISTED]
            return size, None, problem
        checked = check_row(row, self.root, self.view)
        sample.findings = assess(checked, row, self.view)
        if isinstance(checked, Problem):
            return size, None, problem
        try:
            return size, list(placement_of(checked, self.view).shown()), problem
        except DataError:  # of a mask: a finding says so
            return size, None, problem

    def _region(self, row: Mapping[str, Any], region: str) -> dict[str, Any] | None:
        whose = owner(row, region, self.root)
        if whose is Owner.NOBODY:
            return None
        try:
            boxes = read_boxes(f"{region}s", row.get(f"{region}s") or [])
        except LineError:  # a finding says so; what is drawn takes its place
            boxes = ()
        mask = row.get(f"{region}_mask")
        mask = mask if isinstance(mask, str) and mask else None
        return {"boxes": boxes, "mask": mask, "owner": whose.value}

    def save(self, number: int, edit: Edit) -> State:
        """Save an image as a human left it, whole; return its new state.

        Regions that the human changed are marked as theirs, and all that are annotated once the
        image is done.

        Raises:
            ConflictError: somebody else has changed it since the human saw it.
            NotThereError: there is no such image.
            DataError: it could not be trained on.
            OutputError: it cannot be written; it is as it was.
        """
        with self._lock:
            sample = self._sample(number)
            self._rows.refresh()
            row = self._rows.get(sample.name)
            if edit.version != version(row, self.regions, self.root):
                raise ConflictError(self._state(sample))
            new = self._edited(sample, row, edit)
            if new != row:
                checked = check_row(new, self.root, self.view)
                if isinstance(checked, Problem):
                    raise DataError(checked.message)
                self._rows.put(new)
            self._progress.mark(sample.name, edit.done)
            return self._state(sample)

    def _edited(self, sample: Sample, row: dict[str, Any] | None, edit: Edit) -> dict[str, Any]:
        new: dict[str, Any] = {"file_name": sample.name, "text": ""} | (row or {})
        if edit.text != new["text"]:
            put_text_by_human(new, edit.text)
        picture: str | None = None
        for region, wanted in edit.regions.items():
            if region not in self.regions:
                raise DataError(f"regions.{shown(region)}: the data set has no such region")
            if wanted is None:
                new.pop(f"{region}s", None)
                new.pop(f"{region}_mask", None)
                continue
            if wanted.mask is not None and wanted.mask not in self._masks.get(sample.number, ()):
                raise DataError(f"regions.{region}.mask: {shown(wanted.mask)} is not its own")
            confirmed = edit.done and owner(new, region, self.root) is Owner.DETECTOR
            if confirmed or _differs(wanted, self._region(new, region)):
                picture = picture or picture_digest(self._inside(sample.name))
                boxes = [list(box) for box in wanted.boxes]
                put_by_human(new, region, boxes, wanted.mask, picture)
        return new

    def go_to(self, number: int) -> None:
        """Remember which image is looked at, for the next start.

        Raises:
            NotThereError: there is no such image.
            OutputError: it cannot be written.
        """
        with self._lock:
            self._progress.go_to(self._sample(number).name)

    def photograph(self, number: int, side: int) -> bytes:
        """Return an image as JPEG, at most `side` pixels long.

        Raises:
            NotThereError: there is no such image.
            DataError: it cannot be read.
        """
        return pictures.photograph(self._inside(self._sample(number).name), side)

    def mask(self, number: int, name: str) -> bytes:
        """Return one of an image's masks as PNG.

        Raises:
            NotThereError: it is none of this image's.
            DataError: it cannot be read.
        """
        self._sample(number)
        if name not in self._masks.get(number, ()):
            raise NotThereError(name)
        return pictures.mask_png(self._inside(name))

    def trained(self, number: int) -> bytes:
        """Return what the trainer makes of an image: the crop, and the masks in latent cells.

        Raises:
            NotThereError: there is no such image.
            DataError: it cannot be trained on.
        """
        with self._lock:
            sample = self._sample(number)
            self._rows.refresh()
            row = self._rows.get(sample.name)
        if row is None:
            raise DataError(UNLISTED.text)
        checked = check_row(row, self.root, self.view)
        if isinstance(checked, Problem):
            raise DataError(checked.message)
        return pictures.trained_png(checked, self.view)

    def add_mask(self, number: int, region: str, body: bytes) -> str:
        """Write a mask that was painted; return its file name, for `save`.

        Raises:
            NotThereError: there is no such image or region.
            DataError: it is no PNG of the image's size.
            OutputError: it cannot be written.
        """
        sample = self._sample(number)
        if region not in self.regions:
            raise NotThereError(region)
        try:
            size = upright_size(self._inside(sample.name))
        except ImageError as error:
            raise DataError(f"{sample.name}: {error}") from None
        content = pictures.painted_mask(body, size)
        try:
            name = write_mask(self.root, MAKER, _contained(sample.name), region, content)
        except OSError as error:
            raise OutputError(f"{error.filename}: cannot be written: {error.strerror}") from None
        with self._lock:
            self._masks.setdefault(number, set()).add(name)
        return name

    def _sample(self, number: int) -> Sample:
        if not 0 <= number < len(self.samples):
            raise NotThereError(number)
        return self.samples[number]

    def _inside(self, name: str) -> Path:
        """Return the path of a file; raise a DataError where it may not be read."""
        path = self.root / name
        if self.view.data.outside == "error" and not FolderStore(self.root).holds(path):
            raise DataError(f"{path} is not in the data's folder")
        return path

    def _remove_unused(self) -> None:
        """Delete what was painted and no row names any more."""
        self._rows.refresh()
        named = set(named_files(self._rows.all))
        for path in (self.root / MASKS / MAKER).rglob("*.png"):
            relative = path.relative_to(self.root).as_posix()
            if relative not in named and _PAINTED.fullmatch(path.name):
                path.unlink(missing_ok=True)


def regions_of(rows: Sequence[Mapping[str, Any]], known: Sequence[str]) -> tuple[str, ...]:
    """Return the known regions, and those that rows have masks or boxes of."""
    found: dict[str, None] = {}
    for row in rows:
        for key, value in row.items():
            if key.endswith("_mask") and isinstance(value, str):
                found[key.removesuffix("_mask")] = None
            elif key.endswith("s") and value and _are_boxes(key, value):
                found[key.removesuffix("s")] = None
    return (*known, *sorted(set(found) - {*known, ""}))


def _are_boxes(key: str, value: Any) -> bool:
    try:
        return bool(read_boxes(key, value))
    except LineError:
        return False


def _differs(wanted: RegionEdit, former: dict[str, Any] | None) -> bool:
    if former is None:
        return True
    return (wanted.mask, list(wanted.boxes)) != (former["mask"], list(former["boxes"]))


def _contained(name: str) -> str:
    """Return a name for an image's masks, which leads out of no folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        return hashlib.sha256(name.encode()).hexdigest()[:16]
    return name
