"""Whose an annotation is: a region of an image is ours, a human's, or nobody's yet.

The rule: it is ours if the row bears our mark for it and the boxes, the mask's name and the
mask's bytes are still those that we wrote. Any other annotation is a human's. The mark also holds
a digest of the picture that was looked at, so that another picture under its name is noticed.

A caption is ours if the row bears the mark of a caption file or of a model and the text is still
the one that we wrote. A caption file is a human's: no model's caption replaces what it holds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

MARK = "detected"
"""The key of our marks: by region, the detector, its confidences, and digests."""

HUMAN = "human"
"""Who a mark names where a human has looked at a region; see `put_by_human`."""

CAPTION_MARK = "caption_from"
"""The key of a caption's mark: its file, or its model and picture; and a digest of the text."""


class Owner(Enum):
    """Whose the annotation of a region is."""

    NOBODY = "nobody"
    DETECTOR = "detector"
    HUMAN = "human"


def owner(row: Mapping[str, Any], region: str, root: Path) -> Owner:
    """Return whose a row's annotation of a region is."""
    boxes, mask = row.get(f"{region}s"), row.get(f"{region}_mask")
    if boxes is None and mask is None:
        return Owner.NOBODY
    mark = _mark(row, region)
    if mark.get("digest") == digest(boxes, mask, root):
        return Owner.DETECTOR
    return Owner.HUMAN


def made_by(row: Mapping[str, Any], region: str) -> str | None:
    """Return the detector that a row's mark names, with its version and threshold."""
    by = _mark(row, region).get("by")
    return by if isinstance(by, str) else None


def made_of(row: Mapping[str, Any], region: str) -> str | None:
    """Return the digest of the picture that a row's mark is about."""
    picture = _mark(row, region).get("picture")
    return picture if isinstance(picture, str) else None


def put(
    row: dict[str, Any], region: str, found: Mapping[str, Any], by: str, picture: str, root: Path
) -> None:
    """Write what a detector found of a region into a row, with our mark.

    Args:
        row: changed in place.
        region: its name.
        found: "boxes", "scores", and "mask", a file name or None.
        by: the detector.
        picture: the digest of the image file.
        root: the data set's folder.
    """
    row[f"{region}s"] = found["boxes"]
    row.pop(f"{region}_mask", None)
    if found["mask"]:
        row[f"{region}_mask"] = found["mask"]
    marks = row.pop(MARK, None)
    row[MARK] = dict(marks) if isinstance(marks, dict) else {}
    row[MARK][region] = {
        "by": by,
        "scores": found["scores"],
        "picture": picture,
        "digest": digest(found["boxes"], found["mask"], root),
    }


def put_by_human(
    row: dict[str, Any],
    region: str,
    boxes: list[list[float]],
    mask: str | None,
    picture: str | None,
) -> None:
    """Write what a human says of a region into a row, so that no detector replaces it.

    The mark has no digest of the annotation, so that it is a human's even where it is just what a
    detector had found.

    Args:
        row: changed in place.
        region: its name.
        boxes: x, y, width, height in pixels; empty: it is not in the image.
        mask: a file name, or None.
        picture: the digest of the image file.
    """
    row[f"{region}s"] = boxes
    row.pop(f"{region}_mask", None)
    if mask:
        row[f"{region}_mask"] = mask
    marks = row.pop(MARK, None)
    row[MARK] = dict(marks) if isinstance(marks, dict) else {}
    row[MARK][region] = {"by": HUMAN, "picture": picture}


def put_text_by_human(row: dict[str, Any], text: str) -> None:
    """Write a caption of a human into a row, so that no caption file replaces it."""
    row["text"] = text
    row.pop(CAPTION_MARK, None)


def drop(row: dict[str, Any], region: str) -> None:
    """Take an annotation of ours out of a row: nobody has looked at its picture."""
    for key in (f"{region}s", f"{region}_mask"):
        row.pop(key, None)
    row[MARK] = {name: mark for name, mark in row[MARK].items() if name != region}


def caption_is_ours(row: Mapping[str, Any]) -> bool:
    """Return whether a row's text is the one that we took from a caption file or a model."""
    mark = row.get(CAPTION_MARK)
    return isinstance(mark, dict) and mark.get("digest") == _text_digest(row.get("text"))


def put_caption(row: dict[str, Any], file: str, text: str) -> None:
    """Write the text of a caption file into a row, with our mark."""
    row["text"] = text
    row[CAPTION_MARK] = {"file": file, "digest": _text_digest(text)}


def put_caption_by_model(row: dict[str, Any], text: str, by: str, picture: str) -> None:
    """Write a caption of a model into a row, with our mark; see `put` for the arguments."""
    row["text"] = text
    row[CAPTION_MARK] = {"by": by, "picture": picture, "digest": _text_digest(text)}


def captioned_picture(row: Mapping[str, Any]) -> str | None:
    """Return the digest of the picture whose caption a model wrote; None: it is no model's text."""
    mark = row.get(CAPTION_MARK)
    if not isinstance(mark, dict) or "by" not in mark or not caption_is_ours(row):
        return None
    picture = mark.get("picture")
    return picture if isinstance(picture, str) else None


def picture_digest(path: Path) -> str | None:
    """Return a digest of an image file's bytes; None where it cannot be read."""
    try:
        if not path.is_file():  # a FIFO would block
            return None
        found = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                found.update(chunk)
    except OSError:
        return None
    return found.hexdigest()[:16]


def _text_digest(text: Any) -> str:
    return hashlib.sha256(str(text).encode()).hexdigest()[:16]


def digest(boxes: Any, mask: Any, root: Path) -> str:
    """Return a digest of an annotation: its boxes, the mask's name, and the mask's bytes."""
    content = None
    if isinstance(mask, str):
        try:
            content = hashlib.sha256((root / mask).read_bytes()).hexdigest()
        except (OSError, ValueError):
            content = "unreadable"
    text = json.dumps([_numbers(boxes), mask, content], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _numbers(value: Any) -> Any:
    """Return the value with 10 and 10.0 made the same."""
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return value


def _mark(row: Mapping[str, Any], region: str) -> Mapping[str, Any]:
    marks = row.get(MARK)
    mark = marks.get(region) if isinstance(marks, dict) else None
    return mark if isinstance(mark, dict) else {}
