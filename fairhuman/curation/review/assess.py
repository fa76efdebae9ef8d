"""What is wrong with the images of a data set, as `fairhuman inspect` tells, by its index.

Images are not decoded: only their headers are read, and those only where the index does not know
the file. Hence there is no search for duplicates here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fairhuman.common.errors import DataError
from fairhuman.common.images import ImageError, upright_size
from fairhuman.curation.inspection.findings import (
    Finding,
    caption_findings,
    measure,
    unannotated,
)
from fairhuman.curation.inspection.inspect import View
from fairhuman.data.dataset import People
from fairhuman.data.index.load import check_records, read_listing
from fairhuman.data.records import (
    LineError,
    Problem,
    Reading,
    Record,
    check_entry,
    read_entry,
)
from fairhuman.data.stores.folder import FolderStore
from fairhuman.data.transform import Placement

UNLISTED = Finding("unusable", "metadata.jsonl does not name it: it has no annotation")


def reading_of(view: View) -> Reading:
    """Return how rows are read, of which a human has not annotated every region yet."""
    return Reading(view.regions, "absent", outside=view.data.outside)


def assess_all(
    root: Path, rows: Sequence[Mapping[str, Any]], view: View, *, progress: bool = True
) -> list[list[Finding]]:
    """Return what is wrong with each row of metadata.jsonl, in its order.

    Raises:
        DataError: metadata.jsonl cannot be read.
        OutputError: the index cannot be written.
    """
    listing = read_listing(root, reading_of(view), view.data.index)
    check = "trust" if view.data.check == "trust" else "header"
    records, problems = check_records(listing, check)
    usable = {int(row): place for place, row in enumerate(records.rows)}
    unread = listing.column("problem")

    def assess_row(row: int) -> list[Finding]:
        if row in usable:
            return assess(records[usable[row]], rows[row], view)
        problem = problems[row].message if row in problems else unread[row].as_py()
        return [Finding("unusable", problem)]

    # Masks are decoded in C, outside Python's lock; the rest takes less time than a thread's task.
    mask_keys = [f"{region}_mask" for region in view.regions]
    masked = [row for row in range(len(rows)) if any(rows[row].get(key) for key in mask_keys)]
    results: list[list[Finding]] = []
    bar = tqdm(total=len(rows), desc="looking for mistakes", delay=2, disable=not progress)
    with bar, ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        running = {row: pool.submit(assess_row, row) for row in masked}
        for row in range(len(rows)):
            results.append(running[row].result() if row in running else assess_row(row))
            bar.update()
    return results


def assess(checked: Record | Problem, row: Mapping[str, Any], view: View) -> list[Finding]:
    """Return what is wrong with an image, given its row and what its check returned."""
    if isinstance(checked, Problem):
        return [Finding("unusable", checked.message)]
    try:
        placement = placement_of(checked, view)
        measured = measure(checked.regions, placement, view.cell, view.data.mask_margin)
    except (ImageError, DataError) as error:  # of a mask whose header alone was read before
        return [Finding("unusable", f"a mask cannot be read: {error}")]
    return [
        *measured.findings,
        *unannotated(dict(row), view.regions),
        *caption_findings(checked.text),
    ]


def check_row(row: Mapping[str, Any], root: Path, view: View) -> Record | Problem:
    """Check a row as the trainer does, but read the headers of its files alone."""
    name = str(row["file_name"])
    try:
        entry = read_entry(dict(row), name, FolderStore(root), reading_of(view))
    except LineError as error:
        return Problem(name, str(error))
    return check_entry(entry, lambda path, is_mask: upright_size(path))


def placement_of(record: Record, view: View) -> Placement:
    """Return how the trainer places an image in the view's epoch."""
    people = People([record], view.regions, view.data, view.seed, view.cell)
    return people.placement(record, view.epoch)
