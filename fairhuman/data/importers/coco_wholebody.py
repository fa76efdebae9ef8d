"""COCO-WholeBody (Jin et al. 2020, arXiv 2007.11858): boxes of faces and hands.

https://github.com/jin-s13/COCO-WholeBody: each person of COCO has `face_box`, `lefthand_box` and
`righthand_box` as x, y, width, height in pixels, each with a flag `*_valid`.
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from fairhuman.data.records import METADATA, write_metadata
from fairhuman.errors import DataError

PARTS = {"faces": ("face",), "hands": ("lefthand", "righthand")}


@dataclass(frozen=True)
class Imported:
    """What an import wrote."""

    images: int
    faces: int
    hands: int
    missing: int
    """Images that the annotations name and the folder does not hold."""


def import_coco_wholebody(
    annotations: Path, images: Path, out: Path, captions: Path | None = None
) -> Imported:
    """Write a data set of the annotated images into `out`: copies of them, and metadata.jsonl.

    Only boxes marked valid are taken, cut to the image; crowds are left out.

    Args:
        annotations: COCO-WholeBody's JSON file.
        images: the folder of the images.
        out: a folder that holds no data set yet.
        captions: COCO's captions JSON, or JSON lines with `file_name` and `text`; without it
            every caption is empty.

    Raises:
        DataError: a file that is not what it should be, an image that cannot be read, an image
            without a caption, or a data set in `out` already.
    """
    if (out / METADATA).exists():
        raise DataError(f"{out}: holds a data set already; choose another --out")
    if not images.is_dir():
        raise DataError(f"{images}: there is no such folder of images")
    tree = _read_json(annotations)
    persons: dict[int, list[dict[str, Any]]] = defaultdict(list)
    try:
        for person in tree["annotations"]:
            persons[person["image_id"]].append(person)
        listed = {image["id"]: str(image["file_name"]) for image in tree["images"]}
        texts = _captions(captions, listed) if captions else dict.fromkeys(listed.values(), "")
        rows: list[dict[str, Any]] = []
        missing = 0
        for image_id, name in sorted(listed.items()):
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise DataError(f"{annotations}: file_name {name!r} leads out of the folder")
            if not (images / name).is_file():
                missing += 1
                continue
            if name not in texts:
                raise DataError(f"{captions}: has no caption for {name}")
            boxes = _boxes(persons[image_id], _size(images / name))
            rows.append({"file_name": name, "text": texts[name], **boxes})
    except (KeyError, TypeError) as error:
        raise DataError(f"{annotations}: is not COCO-WholeBody's format: {error!r}") from None
    if not rows:
        raise DataError(f"{images}: holds none of the {missing} images that {annotations} names")
    out.mkdir(parents=True, exist_ok=True)
    for row in rows:
        name = row["file_name"]
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(images / name, target)
    write_metadata(out, rows)
    faces, hands = (sum(len(row[key]) for row in rows) for key in PARTS)
    return Imported(len(rows), faces, hands, missing)


def _boxes(persons: list[dict[str, Any]], size: tuple[int, int]) -> dict[str, list[list[float]]]:
    found: dict[str, list[list[float]]] = {key: [] for key in PARTS}
    for person in persons:
        if person.get("iscrowd"):
            continue
        for key, parts in PARTS.items():
            for part in parts:
                box = _inside(person[f"{part}_box"], size) if person[f"{part}_valid"] else None
                if box:
                    found[key].append(box)
    return found


def _inside(box: list[float], size: tuple[int, int]) -> list[float] | None:
    """Return the box cut to the image, rounded to a hundredth of a pixel."""
    x, y, width, height = box
    left, top = max(0.0, x), max(0.0, y)
    right, bottom = min(float(size[0]), x + width), min(float(size[1]), y + height)
    if right <= left or bottom <= top:
        return None
    return [round(value, 2) for value in (left, top, right - left, bottom - top)]


def _size(path: Path) -> tuple[int, int]:
    # COCO's boxes are in the pixels as stored, without EXIF orientation.
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as an image: {error}") from None


def _captions(path: Path, names: dict[int, str]) -> dict[str, str]:
    """Return a caption per file name: the first where COCO has several."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    found: dict[str, str] = {}
    try:
        tree = json.loads(text)
        if "annotations" in tree:
            for caption in tree["annotations"]:
                if caption["image_id"] in names:
                    found.setdefault(names[caption["image_id"]], caption["caption"].strip())
            return found
    except json.JSONDecodeError:
        pass  # several lines, each an object of its own
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: is not COCO's captions format: {error!r}") from None
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            found[row["file_name"]] = row["text"]
        except (json.JSONDecodeError, KeyError, TypeError):
            raise DataError(
                f"{path}:{number}: is not a JSON object with file_name and text"
            ) from None
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(tree, dict):
        raise DataError(f"{path}: is not COCO-WholeBody's format: it holds no object")
    return tree
