"""YOLO's label files: `STEM.txt` with a line `class x y width height` per box, in shares.

x and y are the box's centre. A sixth number (a confidence) is passed over; a line with more is an
outline `class x y x y …`, and its box is taken. The shares are of the upright image: the tools that
write and read these files, ultralytics among them, apply EXIF orientation when they open images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairhuman.common.errors import DataError
from fairhuman.curation.importers.common import (
    Imported,
    check_out,
    counts,
    images_by_stem,
    inside,
    texts,
    write_data_set,
)
from fairhuman.data.folder import open_photograph


def import_yolo(
    labels: Path,
    images: Path,
    out: Path,
    face_classes: Sequence[int] = (),
    hand_classes: Sequence[int] = (),
    captions: Path | None = None,
) -> Imported:
    """Write a data set of all images into `out`; an image without a label file has no boxes.

    Args:
        labels: the folder of the label files.
        images: the folder of the images.
        out: a folder that holds no data set yet.
        face_classes: the classes that are faces; none: faces are not annotated.
        hand_classes: the classes that are hands; none: hands are not annotated.
        captions: JSON lines with `file_name` and `text`; without it .txt files next to the images.

    Raises:
        DataError: a file that is not what it should be, or no label file for any image.
    """
    classes = {"faces": set(face_classes), "hands": set(hand_classes)}
    if not any(classes.values()):
        raise DataError("import yolo: give --face-class, --hand-class or both")
    if classes["faces"] & classes["hands"]:
        raise DataError("import yolo: a class cannot be both a face and a hand")
    check_out(out, images)
    if not labels.is_dir():
        raise DataError(f"{labels}: there is no such folder of label files")
    names, left_out = images_by_stem(images)
    if captions is None and labels.resolve() == images.resolve():
        # Label files and captions would have the same names.
        captioned = dict.fromkeys(names.values(), "")
    else:
        captioned = texts(captions, list(names.values()), images, left_out)
    rows = []
    unlabelled = 0
    for stem, name in names.items():
        size = open_photograph(images / name).size
        path = labels / f"{stem}.txt"
        unlabelled += not path.is_file()
        boxes = _boxes(path, size) if path.is_file() else []
        row: dict[str, Any] = {"file_name": name, "text": captioned[name]}
        for key, wanted in classes.items():
            if wanted:
                row[key] = [box for number, box in boxes if number in wanted]
        rows.append(row)
    if unlabelled == len(rows):
        raise DataError(f"{labels}: holds no STEM.txt of the images in {images}")
    write_data_set(out, images, rows)
    return counts(rows, unannotated=unlabelled, left_out=left_out)


def _boxes(path: Path, size: tuple[int, int]) -> list[tuple[int, list[float]]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    found = []
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        try:
            kind, values = int(words[0]), [float(word) for word in words[1:]]
            box = inside(_box(values, size), size)
        except ValueError as error:
            raise DataError(
                f"{path}:{number}: is not `class x y width height` in shares of the image: "
                f"{str(error)[:100]}"
            ) from None
        if box:
            found.append((kind, box))
    return found


def _box(values: Sequence[float], size: tuple[int, int]) -> list[float]:
    if not all(math.isfinite(value) and -0.5 <= value <= 1.5 for value in values):
        raise ValueError("a number is not between 0 and 1")
    if len(values) in (4, 5):
        x, y, width, height = values[:4]
        if width < 0 or height < 0:
            raise ValueError("width and height must be above 0")
        left, top = x - width / 2, y - height / 2
    elif len(values) >= 6 and len(values) % 2 == 0:
        xs, ys = values[0::2], values[1::2]
        left, top, width, height = min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)
    else:
        raise ValueError(f"{1 + len(values)} numbers")
    return [left * size[0], top * size[1], width * size[0], height * size[1]]
