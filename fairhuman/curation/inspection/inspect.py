"""`fairhuman inspect`: look at a data set as the trainer will, and write a page of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairhuman.common.counted import counted
from fairhuman.common.errors import DataError, UserError
from fairhuman.common.files import write_text
from fairhuman.common.pixels import data_uri
from fairhuman.config import Config, Data
from fairhuman.curation.inspection import duplicates
from fairhuman.curation.inspection.findings import (
    Finding,
    caption_findings,
    long_caption,
    measure,
    unannotated,
)
from fairhuman.curation.inspection.page import render
from fairhuman.curation.inspection.rows import Inspection, Sample
from fairhuman.curation.inspection.thumbnails import JPEG_QUALITY, annotated, trained
from fairhuman.data.buckets import frame
from fairhuman.data.dataset import People
from fairhuman.data.folder import find_images, named_files, open_photograph, scan_rows
from fairhuman.data.order import generator
from fairhuman.data.records import Entry, Problem, Reading, Record, check_entries, read_entries
from fairhuman.data.stores.folder import FolderStore
from fairhuman.data.transform import Placement
from fairhuman.models.families.protocol import TokenCounter

REGIONS = ("face", "hand")
CELL = 8
"""Pixels per side of a cell of the latent grid, where no model is named: most models'."""


@dataclass(frozen=True)
class View:
    """How the samples are looked at."""

    data: Data
    regions: tuple[str, ...] = REGIONS
    seed: int = 0
    epoch: int = 0
    train_view: bool = False
    """Show what the trainer's own data set gives instead of the stored images."""
    counter: TokenCounter | None = None
    """The model, to count the tokens of captions."""
    cell: int = CELL
    """Pixels per side of a cell of the latent grid."""

    @classmethod
    def plain(cls, root: Path, resolution: int) -> View:
        """Return the view of the stored images at a training resolution."""
        if resolution < 64 or resolution % CELL:
            raise UserError(f"--resolution {resolution}: must be at least 64, a multiple of {CELL}")
        return cls(Data(root=str(root), resolution=resolution))

    @classmethod
    def of(cls, config: Config, epoch: int) -> View:
        """Return the trainer's view under a config, in an epoch."""
        regions = tuple(config.objectives.regions)
        return cls(
            config.data,
            regions,
            config.train.seed,
            epoch,
            train_view=True,
        )


def inspect(root: Path, view: View) -> Inspection:
    """Look at every sample of a data set.

    Raises:
        DataError: the folder or its metadata.jsonl is not there, or names no image.
    """
    columns = view.data.columns
    reading = Reading(view.regions, "absent", columns, outside=view.data.outside)
    store = FolderStore(root)
    entries, problems = read_entries(store, reading)
    if not entries and not problems:
        raise DataError(f"{root}: metadata.jsonl names no image")
    rows = {row["file_name"]: row for row in _rows(root, view)}
    checked = check_entries(entries)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        looked = list(pool.map(_look, entries, checked, [view] * len(entries)))
    for entry, look in zip(entries, looked, strict=True):
        row = {ours: rows.get(entry.id, {}).get(columns.get(ours, ours)) for ours in _keys(view)}
        look.sample.findings += unannotated(row, view.regions)
        look.sample.findings += caption_findings(entry.text)
    _mark_long(looked, [entry.text for entry in entries], view)
    _mark_duplicates(looked)
    samples = [look.sample for look in looked]
    for problem in problems:
        samples.append(Sample(0, problem.place, findings=[Finding("unusable", problem.message)]))
    samples += _unlisted(root, entries, list(rows.values()))
    for number, sample in enumerate(samples):
        sample.number = number
    return Inspection(
        root, view.data.resolution, view.cell, list(view.regions), samples, view.train_view
    )


def write_page(inspection: Inspection, out: Path, limit: int) -> None:
    """Write the page whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    write_text(out, render(inspection, limit))


@dataclass
class _Look:
    sample: Sample
    fingerprint: NDArray[np.uint8] | None = None
    digest: str | None = None


def _look(entry: Entry, checked: Record | Problem, view: View) -> _Look:
    sample = Sample(0, entry.id, entry.text)
    if isinstance(checked, Problem):
        sample.findings.append(Finding("unusable", checked.message))
        return _Look(sample)
    try:
        image = open_photograph(checked.image)
    except DataError as error:
        sample.findings.append(Finding("unusable", str(error)))
        return _Look(sample)
    placement = _placement(checked, view)
    measured = measure(checked.regions, placement, view.cell, view.data.mask_margin)
    sample.sizes, sample.findings = measured.sizes, measured.findings
    counts = [counted(len(sample.sizes_of(region)), region) for region in view.regions]
    sample.detail = f"{checked.size[0]} x {checked.size[1]} px, {', '.join(counts)}"
    if view.train_view:
        sample.picture = _as_trained(checked, view)
    else:
        sample.picture = data_uri(annotated(image, checked.regions, placement), JPEG_QUALITY)
    digest = hashlib.sha256(checked.image.read_bytes()).hexdigest()
    return _Look(sample, duplicates.fingerprint(image), digest)


def _placement(record: Record, view: View) -> Placement:
    """Return how the trainer places a sample; without a config, by the middle of the image."""
    if not view.train_view:
        rng = generator(view.seed, view.epoch, record.id, "placement")
        return Placement.draw(record.size, frame(record.size, view.data), rng)
    people = People([record], view.regions, view.data, view.seed, view.cell)
    return people.placement(record, view.epoch)


def _as_trained(record: Record, view: View) -> str:
    batch = People([record], view.regions, view.data, view.seed, view.cell)[view.epoch, 0]
    assert batch.pixels is not None  # without a cache
    masks = {region: batch.masks[0, i].numpy() for i, region in enumerate(view.regions)}
    return data_uri(trained(batch.pixels[0].numpy(), masks), JPEG_QUALITY)


def _mark_long(looked: Sequence[_Look], texts: Sequence[str], view: View) -> None:
    if view.counter is None:
        return
    for look, tokens in zip(looked, view.counter.token_counts(texts), strict=True):
        look.sample.findings += long_caption(tokens, view.counter.tokens)


def _mark_duplicates(looked: Sequence[_Look]) -> None:
    by_name = {look.sample.name: look for look in looked if look.digest}
    repeated = duplicates.same(
        {name: look.fingerprint for name, look in by_name.items()},
        {name: look.digest for name, look in by_name.items() if look.digest},
    )
    for name, first in repeated.items():
        by_name[name].sample.findings.append(Finding("duplicate", f"the same picture as {first}"))


def _keys(view: View) -> list[str]:
    return [key for region in view.regions for key in (f"{region}s", f"{region}_mask")]


def _rows(root: Path, view: View) -> list[dict[str, Any]]:
    name = view.data.columns.get("file_name", "file_name")
    # What is wrong with the other rows is said by `read_entries`.
    return [row | {"file_name": row[name]} for row in scan_rows(root, name)[0]]


def _unlisted(root: Path, entries: Sequence[Entry], rows: Sequence[dict[str, Any]]) -> list[Sample]:
    """Return the images of the folder that metadata.jsonl does not name."""
    listed = {entry.id for entry in entries} | {str(row["file_name"]) for row in rows}
    names, problems = find_images(root, exclude=named_files(rows))
    samples = [
        Sample(0, name, findings=[Finding("unusable", "metadata.jsonl does not name it")])
        for name in names
        if name not in listed
    ]
    for problem in problems:
        samples.append(Sample(0, problem.place, findings=[Finding("unusable", problem.message)]))
    return samples
