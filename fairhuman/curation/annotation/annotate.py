"""`fairhuman annotate`: a folder of photographs becomes a data set with faces and hands."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from fairhuman.common.error_text import reason
from fairhuman.common.errors import DataError, OutputError, UserError
from fairhuman.curation.annotation import worker
from fairhuman.curation.annotation.detector import REGIONS, DetectorChoice
from fairhuman.curation.annotation.journal import Journal
from fairhuman.curation.annotation.marks import (
    MARK,
    Owner,
    caption_is_ours,
    drop,
    made_by,
    made_of,
    owner,
    put,
    put_caption,
)
from fairhuman.curation.photographs import read_photographs, written_to
from fairhuman.data.captions import CaptionFiles
from fairhuman.data.folder import find_labels, named_files, read_rows
from fairhuman.data.records import Problem, write_metadata


@dataclass
class Annotated:
    """What `annotate` did. Regions of images are counted one by one."""

    images: int = 0
    looked_at: int = 0
    """Images that the detector saw, in this run or in the stopped one that it continues."""
    up_to_date: int = 0
    """Regions that the same detector had found before."""
    kept: int = 0
    """Regions that a human annotated."""
    faces: int = 0
    hands: int = 0
    masks: int = 0
    refined: int | None = None
    """Faces and hands whose mask a SAM drew; None: there was none to do so."""
    without: int = 0
    """Images in which neither was found."""
    suffixes: Counter[str] = field(default_factory=Counter)
    """How many images have each, in lower case."""
    captions: int = 0
    """Captions taken from caption files,"""
    caption_file: str = ""
    """of which this is the first."""
    captions_kept: list[str] = field(default_factory=list)
    """Images whose text a human wrote, and whose caption file says something else."""
    uncaptioned: int = 0
    replaced: list[str] = field(default_factory=list)
    """Images that were replaced since a human edited what was found in them."""
    outside: list[str] = field(default_factory=list)
    """Images that are links out of the folder."""
    labels: int = 0
    """Masks and control images of other trainers, which are no photographs."""
    notes: list[Problem] = field(default_factory=list)
    """What is odd about images that were not left out."""
    left_out: list[Problem] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return the counts as text."""
        lines = [
            f"{self.images} images: {self.looked_at} looked at, {self.faces} faces and "
            f"{self.hands} hands found, {self.masks} masks; {self.without} without either"
        ]
        if self.refined is not None:
            rest = self.faces + self.hands - self.refined
            lines.append(
                f"{self.refined} of these have a mask by SAM; {rest} keep their outline or box, as "
                "SAM's mask was implausible"
            )
        if len(self.suffixes) > 1:
            kinds = ", ".join(f"{n} {suffix}" for suffix, n in sorted(self.suffixes.items()))
            lines.append(f"by kind: {kinds}")
        if self.up_to_date:
            lines.append(f"{self.up_to_date} annotations were up to date")
        if self.kept:
            lines.append(f"{self.kept} annotations of a human were kept (--force replaces them)")
        if self.replaced:
            lines.append(
                f"{len(self.replaced)} images with annotations of a human were replaced since, "
                f"such as {self.replaced[0]}: look at them (--force replaces the annotations)"
            )
        if self.captions:
            lines.append(
                f"{self.captions} captions came from caption files, such as {self.caption_file}"
            )
        if self.captions_kept:
            lines.append(
                f"{len(self.captions_kept)} captions of metadata.jsonl were kept though their "
                f"files say something else, such as that of {self.captions_kept[0]} (--force takes "
                "the files')"
            )
        if self.uncaptioned:
            lines.append(
                f"{self.uncaptioned} images have no caption: write one as NAME.txt next to each"
            )
        if self.outside:
            lines.append(
                f"{len(self.outside)} images are links out of the folder, such as "
                f"{self.outside[0]}: copy them in, or train with data.outside=allow"
            )
        if self.labels:
            lines.append(
                f"{self.labels} pictures named -masklabel or -condlabel are masks or control "
                "images: `fairhuman import masks` reads masks"
            )
        lines += map(str, self.notes)
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

    What is there stays: other keys, and every annotation and caption that is not ours as we wrote
    it (see `marks`). A stopped run is continued; until the end metadata.jsonl is as before.

    Args:
        root: the folder.
        choice: the detector.
        force: replace the annotations of humans too, take the text of every caption file, and look
            at every image again.
        jobs: processes; None: one per core.
        progress: show a bar.

    Raises:
        UserError: the detector cannot be loaded, the folder cannot be read or written, or is being
            annotated by another process.
    """
    with written_to(root, "annotating", "annotate"):
        return _annotate(root, choice, force, jobs, progress)


def _annotate(
    root: Path, choice: DetectorChoice, force: bool, jobs: int | None, progress: bool
) -> Annotated:
    rows, names, left_out = read_photographs(root)
    detector = choice.make()
    by = f"{detector.name} {detector.version}, threshold {choice.settings.get('threshold', 0.5)}"
    wanted = detector.regions
    del detector
    known = {row["file_name"]: row for row in rows}
    try:
        journal = Journal(root, f"{by}, forced" if force else by)
        pictures = journal.check_pictures(n for n in names if MARK in known.get(n, {}))
        with journal:
            tasks: list[tuple[str, tuple[str, ...]]] = []
            for name in names:
                row, picture = known.get(name, {}), pictures.get(name)
                regions = _open_regions(row, wanted, root, by, picture, force)
                if regions and name not in journal.found:
                    tasks.append((name, regions))
            _look_at(tasks, root, choice, journal, jobs, progress)
        # Read again: someone may have edited it meanwhile.
        rows = read_rows(root)
        done = _finish(
            root, rows, names, wanted, journal.found, pictures, by, force, choice.sam is not None
        )
        journal.remove()
    except OSError as error:
        raise OutputError(f"{error.filename or root}: cannot be written: {reason(error)}") from None
    done.left_out[:0] = left_out
    done.labels = len(find_labels(root))
    done.outside = [name for name in names if _leads_out(root, name)]
    return done


def _leads_out(root: Path, name: str) -> bool:
    # Not Path.resolve, which raises an error for links in a circle.
    path, top = Path(os.path.realpath(root / name)), Path(os.path.realpath(root))
    return not path.is_relative_to(top)


def _open_regions(
    row: dict[str, Any],
    wanted: tuple[str, ...],
    root: Path,
    by: str,
    picture: str | None,
    force: bool,
) -> tuple[str, ...]:
    """Return the regions of an image that are to be looked for; `picture` is its digest."""
    regions = []
    for region in wanted:
        whose = owner(row, region, root)
        current = made_by(row, region) == by and made_of(row, region) == picture
        if force or whose is Owner.NOBODY or (whose is Owner.DETECTOR and not current):
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
            "run the command again to continue, with --jobs 1 if it happens again"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _finish(
    root: Path,
    rows: list[dict[str, Any]],
    names: list[str],
    regions: tuple[str, ...],
    found: dict[str, dict[str, Any]],
    pictures: dict[str, str | None],
    by: str,
    force: bool,
    refines: bool,
) -> Annotated:
    """Write metadata.jsonl, and delete masks of ours that it no longer names."""
    suffixes = Counter(PurePosixPath(name).suffix.lower() for name in names)
    done = Annotated(images=len(names), suffixes=suffixes, refined=0 if refines else None)
    known = {row["file_name"]: row for row in rows}
    captions = CaptionFiles()
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
        _caption(row, captions, root, done, force)
        picture = entry.get("picture") or pictures.get(name)
        masks = {row.get(f"{r}_mask") for r in REGIONS if owner(row, r, root) is Owner.DETECTOR}
        opened = _open_regions(row, regions, root, by, picture, force)
        _put_regions(row, opened, entry, picture, root, by, done)
        obsolete |= {mask for mask in masks if mask}
    write_metadata(root, rows)
    for mask in obsolete.difference(named_files(rows)):
        (root / mask).unlink(missing_ok=True)
    return done


def _put_regions(
    row: dict[str, Any],
    wanted: tuple[str, ...],
    entry: dict[str, Any],
    picture: str | None,
    root: Path,
    by: str,
    done: Annotated,
) -> None:
    """Write what was found in an image into its row, and count it."""
    written, replaced = 0, False
    for region in REGIONS:
        whose = owner(row, region, root)
        other = picture is not None and made_of(row, region) not in (None, picture)
        result = entry.get("found", {}).get(region)
        if result and region in wanted:
            assert picture is not None  # the image was read
            put(row, region, result, by, picture, root)
            written += len(result["boxes"])
            done.faces += len(result["boxes"]) if region == "face" else 0
            done.hands += len(result["boxes"]) if region == "hand" else 0
            done.masks += bool(result["mask"])
            if done.refined is not None:
                done.refined += result["refined"]
        elif whose is Owner.HUMAN:
            done.kept += 1
            replaced |= other
        elif whose is Owner.DETECTOR and other:
            drop(row, region)  # of the old picture, and the new one could not be looked at
        elif whose is Owner.DETECTOR:
            done.up_to_date += 1
    if replaced:
        done.replaced.append(row["file_name"])
    done.looked_at += "found" in entry
    done.without += "found" in entry and not written


def _caption(
    row: dict[str, Any], captions: CaptionFiles, root: Path, done: Annotated, force: bool
) -> None:
    """Take the text of an image's caption file, unless a human wrote another into the row."""
    name, text = row["file_name"], row.get("text") or ""
    caption = None
    try:
        caption = captions.read(root / name)
    except DataError as error:
        kept = "kept with the caption that it had" if text else "kept without its caption"
        done.notes.append(Problem(name, f"{kept}: {error}"))
    if caption and caption.others:
        done.notes.append(Problem(name, caption.passed_over()))
    if caption and (force or not text or text == caption.text or caption_is_ours(row)):
        if text != caption.text:
            done.captions += 1
            done.caption_file = done.caption_file or caption.file
        put_caption(row, caption.file, caption.text)
    elif caption:
        done.captions_kept.append(name)
    row["text"] = row.get("text") or ""
    done.uncaptioned += not row["text"]
