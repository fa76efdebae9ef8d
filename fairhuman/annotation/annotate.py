"""`fairhuman annotate`: a folder of photographs becomes a data set with faces and hands."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fairhuman.annotation import worker
from fairhuman.annotation.detector import REGIONS, DetectorChoice
from fairhuman.annotation.journal import Journal
from fairhuman.annotation.marks import Owner, made_by, owner, put
from fairhuman.data.folder import caption_file, find_images, named_files, read_rows
from fairhuman.data.records import Problem, write_metadata
from fairhuman.errors import DataError, OutputError, UserError


@dataclass
class Annotated:
    """What `annotate` did. Regions of images are counted one by one."""

    images: int = 0
    looked_at: int = 0
    """Images that the detector saw, in this run or in the one that it goes on from."""
    up_to_date: int = 0
    """Regions that the same detector had found before."""
    kept: int = 0
    """Regions that a human annotated."""
    faces: int = 0
    hands: int = 0
    masks: int = 0
    without: int = 0
    """Images in which neither was found."""
    captions: int = 0
    """Captions taken from .txt files."""
    uncaptioned: int = 0
    left_out: list[Problem] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return the counts as text."""
        lines = [
            f"{self.images} images: {self.looked_at} looked at, {self.faces} faces and "
            f"{self.hands} hands found, {self.masks} hand masks; {self.without} without either"
        ]
        if self.up_to_date:
            lines.append(f"{self.up_to_date} annotations were up to date")
        if self.kept:
            lines.append(f"{self.kept} annotations of a human were kept (--force replaces them)")
        if self.captions:
            lines.append(f"{self.captions} captions came from .txt files")
        if self.uncaptioned:
            lines.append(f"{self.uncaptioned} images have no caption: write a .txt beside each")
        if self.left_out:
            lines.append(f"{len(self.left_out)} left out:")
            lines += [f"  {problem}" for problem in self.left_out]
        return lines


def annotate(
    root: Path,
    choice: DetectorChoice,
    *,
    force: bool = False,
    jobs: int | None = None,
    progress: bool = True,
) -> Annotated:
    """Find faces and hands in the images of a folder, and write its metadata.jsonl.

    What is there stays: captions, other keys, and every annotation that is not ours as we wrote
    it (see `marks`). A stopped run goes on where it was; until the end metadata.jsonl is as before.

    Args:
        root: the folder.
        choice: the detector.
        force: replace the annotations of humans too, and look at every image again.
        jobs: processes; None: one per core.
        progress: show a bar.

    Raises:
        UserError: the detector cannot be loaded, the folder cannot be read or written.
    """
    rows = read_rows(root)
    names, left_out = find_images(root, exclude=named_files(rows))
    if not names:
        raise DataError(
            "\n".join([*map(str, left_out), f"{root}: holds no image (.jpg, .png, .webp, …)"])
        )
    if not os.access(root, os.W_OK):
        raise OutputError(f"{root}: cannot be written to: annotate a copy of it")
    detector = choice.make()
    by = f"{detector.name} {detector.version}, threshold {choice.settings.get('threshold', 0.5)}"
    wanted = detector.regions
    del detector
    known = {row["file_name"]: row for row in rows}
    try:
        with Journal(root, f"{by}, forced" if force else by) as journal:
            tasks: list[tuple[str, tuple[str, ...]]] = []
            for name in names:
                regions = _open_regions(known.get(name, {}), wanted, root, by, force)
                if regions and name not in journal.found:
                    tasks.append((name, regions))
            _look_at(tasks, root, choice, journal, jobs, progress)
        # Read again: someone may have edited it meanwhile.
        done = _finish(root, read_rows(root), names, wanted, journal.found, by, force)
        journal.remove()
    except OSError as error:
        raise OutputError(
            f"{error.filename or root}: cannot be written: {error.strerror}"
        ) from None
    done.left_out[:0] = left_out
    return done


def _open_regions(
    row: dict[str, Any], wanted: tuple[str, ...], root: Path, by: str, force: bool
) -> tuple[str, ...]:
    """Return the regions of an image that are to be looked for."""
    regions = []
    for region in wanted:
        whose = owner(row, region, root)
        ours = whose is Owner.DETECTOR and made_by(row, region) == by
        if force or whose is Owner.NOBODY or (whose is Owner.DETECTOR and not ours):
            regions.append(region)
    return tuple(regions)


def _look_at(
    tasks: list[tuple[str, tuple[str, ...]]],
    root: Path,
    choice: DetectorChoice,
    journal: Journal,
    jobs: int | None,
    progress: bool,
) -> None:
    if not tasks:
        return
    jobs = min(jobs or len(os.sched_getaffinity(0)), len(tasks))
    if jobs == 1:
        worker.start(root, choice)
        for name, regions in tqdm(tasks, unit="img", disable=not progress):
            journal.add(name, worker.look(name, regions))
        return
    # fork would copy the threads' locks of what is loaded here.
    pool = ProcessPoolExecutor(
        jobs,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=worker.start_worker,
        initargs=(root, choice),
    )
    try:
        futures = {pool.submit(worker.look, *task): task[0] for task in tasks}
        for future in tqdm(
            as_completed(futures), total=len(tasks), unit="img", disable=not progress
        ):
            journal.add(futures[future], future.result())
    except BrokenProcessPool:
        raise UserError(
            f"{root}: a worker process died, perhaps for lack of memory; what was found is kept: "
            "run the command again to go on, with --jobs 1 if it happens again"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _finish(
    root: Path,
    rows: list[dict[str, Any]],
    names: list[str],
    regions: tuple[str, ...],
    found: dict[str, dict[str, Any]],
    by: str,
    force: bool,
) -> Annotated:
    """Write metadata.jsonl, and delete masks of ours that it no longer names."""
    done = Annotated(images=len(names))
    known = {row["file_name"]: row for row in rows}
    obsolete: set[str] = set()
    for name in names:
        entry = found.get(name, {})
        if "problem" in entry:
            done.left_out.append(Problem(name, entry["problem"].removeprefix(f"{root / name}: ")))
        row = known.get(name)
        if row is None:
            if "found" not in entry:
                continue
            row = {"file_name": name, "text": ""}
            rows.append(row)
        _caption(row, root, done)
        done.looked_at += "found" in entry
        written = 0
        for region in REGIONS:
            whose = owner(row, region, root)
            wanted = region in _open_regions(row, regions, root, by, force)
            result = entry.get("found", {}).get(region)
            if result and wanted:
                if whose is Owner.DETECTOR and row.get(f"{region}_mask"):
                    obsolete.add(row[f"{region}_mask"])
                put(row, region, result, by, root)
                written += len(result["boxes"])
                done.faces += len(result["boxes"]) if region == "face" else 0
                done.hands += len(result["boxes"]) if region == "hand" else 0
                done.masks += bool(result["mask"])
            elif whose is Owner.HUMAN:
                done.kept += 1
            elif whose is Owner.DETECTOR:
                done.up_to_date += 1
        done.without += "found" in entry and not written
    write_metadata(root, rows)
    for mask in obsolete.difference(named_files(rows)):
        (root / mask).unlink(missing_ok=True)
    return done


def _caption(row: dict[str, Any], root: Path, done: Annotated) -> None:
    if not row.get("text"):
        try:
            text = caption_file(root / row["file_name"])
        except DataError as error:
            text = None
            done.left_out.append(Problem("caption", str(error)))
        row["text"] = text or ""
        done.captions += bool(text)
        done.uncaptioned += not text
