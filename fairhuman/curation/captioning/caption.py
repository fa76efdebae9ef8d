"""`fairhuman caption`: a model describes the images that no human has described."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from tqdm import tqdm

from fairhuman.common.error_text import reason
from fairhuman.common.errors import DataError, OutputError
from fairhuman.curation.annotation.journal import Journal
from fairhuman.curation.annotation.marks import (
    caption_is_ours,
    captioned_picture,
    picture_digest,
    put_caption,
    put_caption_by_model,
)
from fairhuman.curation.captioning.wording import Wording
from fairhuman.curation.photographs import read_photographs, written_to
from fairhuman.data.captions import Caption, CaptionFiles
from fairhuman.data.folder import open_photograph, read_rows
from fairhuman.data.records import Problem, write_metadata

NAME = ".caption.progress.jsonl"


class Describer(Protocol):
    """What describes images; see `Captioner`."""

    def describe(self, images: Sequence[Image.Image]) -> list[str]:
        """Return a text for each."""
        ...


@dataclass
class Captioned:
    """What `caption_folder` did."""

    images: int = 0
    written: int = 0
    """Captions of the model, in this run or in the stopped one that it continues."""
    example: str = ""
    """One of them."""
    by_human: int = 0
    """Captions of humans, in metadata.jsonl or in caption files: kept."""
    by_model: int = 0
    """Captions of an earlier run: kept."""
    empty: int = 0
    """Images that the model wrote nothing about."""
    left_out: list[Problem] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return the counts as text."""
        lines = [f"{self.images} images: {self.written} captions written"]
        if self.example:
            lines.append(f"such as: {self.example}")
        if self.by_human:
            lines.append(f"{self.by_human} captions of a human were kept")
        if self.by_model:
            lines.append(f"{self.by_model} captions of a model were kept (--overwrite: new ones)")
        if self.empty:
            lines.append(f"{self.empty} images about which the model wrote nothing")
        if self.left_out:
            lines.append(f"{len(self.left_out)} left out:")
            lines += [f"  {problem}" for problem in self.left_out]
        return lines


def caption_folder(
    root: Path,
    by: str,
    load: Callable[[], Describer],
    wording: Wording,
    *,
    batch_size: int = 8,
    overwrite: bool = False,
    progress: bool = True,
) -> Captioned:
    """Caption the images of a folder that have no caption, and write its metadata.jsonl.

    A human's caption stays: a text of metadata.jsonl that is not a model's as it wrote it, and what
    a caption file next to an image holds, which is taken as `annotate` takes it. A model's caption
    of a picture that was replaced since is written again. A stopped run is continued; until the end
    metadata.jsonl is as before.

    Args:
        root: the folder.
        by: the model and its prompt: what the captions' marks name.
        load: loads the model, if there is something to describe.
        wording: what is put around the model's texts.
        batch_size: images at a time.
        overwrite: write the captions of models again.
        progress: show a bar.

    Raises:
        UserError: the model cannot be used, the folder cannot be read or written, or is being
            annotated by another process.
    """
    with written_to(root, "captioning", "caption"):
        try:
            return _caption(root, by, load, wording, batch_size, overwrite, progress)
        except OSError as error:
            place = error.filename or root
            raise OutputError(f"{place}: cannot be written: {reason(error)}") from None


def _caption(
    root: Path,
    by: str,
    load: Callable[[], Describer],
    wording: Wording,
    batch_size: int,
    overwrite: bool,
    progress: bool,
) -> Captioned:
    rows, names, left_out = read_photographs(root)
    known = {row["file_name"]: row for row in rows}
    files, unreadable = _caption_files(root, names)
    journal = Journal(root, by, NAME)
    pictures = journal.check_pictures(
        name for name in names if captioned_picture(known.get(name, {}))
    )
    with journal:
        settled = {*journal.found, *files, *(problem.place for problem in unreadable)}
        tasks = [
            name
            for name in names
            if name not in settled and _is_open(known.get(name, {}), pictures.get(name), overwrite)
        ]
        if tasks:
            _describe(root, tasks, load(), journal, batch_size, progress)
    # Read again: someone may have edited it meanwhile.
    rows = read_rows(root)
    files, unreadable = _caption_files(root, names)
    done = Captioned(images=len(names), left_out=[*left_out, *unreadable])
    known = {row["file_name"]: row for row in rows}
    for name in names:
        entry = journal.found.get(name, {})
        row = known.get(name)
        if "problem" in entry:
            done.left_out.append(Problem(name, entry["problem"].removeprefix(f"{root / name}: ")))
        if row is None:
            if "found" not in entry and name not in files:
                continue
            row = {"file_name": name, "text": ""}
            rows.append(row)
        _put(row, files.get(name), entry, pictures.get(name), wording, by, overwrite, done)
    write_metadata(root, rows)
    journal.remove()
    return done


def _caption_files(root: Path, names: Sequence[str]) -> tuple[dict[str, Caption], list[Problem]]:
    """Return the captions that lie next to the images, and which cannot be read."""
    reader = CaptionFiles()
    found: dict[str, Caption] = {}
    problems: list[Problem] = []
    for name in names:
        try:
            caption = reader.read(root / name)
        except DataError as error:
            problems.append(Problem(name, f"its caption file may hold a human's caption: {error}"))
            continue
        if caption:
            found[name] = caption
    return found, problems


def _is_open(row: dict[str, Any], picture: str | None, overwrite: bool) -> bool:
    """Return whether an image is to be described; `picture` is its digest."""
    if not row.get("text"):
        return True
    described = captioned_picture(row)
    return described is not None and (overwrite or described != picture)


def _describe(
    root: Path,
    names: Sequence[str],
    describer: Describer,
    journal: Journal,
    batch_size: int,
    progress: bool,
) -> None:
    left = iter(names)
    with tqdm(total=len(names), unit="img", disable=not progress) as bar:
        while part := list(islice(left, batch_size)):
            opened: list[tuple[str, str | None, Image.Image]] = []
            for name in part:
                # Taken before it is opened: if it is replaced in between, the next run looks again.
                picture = picture_digest(root / name)
                try:
                    opened.append((name, picture, open_photograph(root / name)))
                except DataError as error:
                    journal.add(name, {"picture": picture, "problem": str(error)})
            texts = describer.describe([image for _, _, image in opened]) if opened else []
            for (name, picture, _), text in zip(opened, texts, strict=True):
                journal.add(name, {"picture": picture, "found": text})
            bar.update(len(part))


def _put(
    row: dict[str, Any],
    file: Caption | None,
    entry: dict[str, Any],
    picture: str | None,
    wording: Wording,
    by: str,
    overwrite: bool,
    done: Captioned,
) -> None:
    """Write an image's caption into its row, unless a human's is there, and count it."""
    row["text"] = row.get("text") or ""
    if file and (not row["text"] or caption_is_ours(row)):
        put_caption(row, file.file, file.text)
    elif not file and "found" in entry and _is_open(row, picture, overwrite):
        caption = wording.caption(entry["found"])
        if caption:
            put_caption_by_model(row, caption, by, entry["picture"])
            done.written += 1
            done.example = done.example or caption
            return
        done.empty += 1
    if row["text"]:
        done.by_model += captioned_picture(row) is not None
        done.by_human += captioned_picture(row) is None
