"""COCO-WholeBody (Jin et al. 2020, arXiv 2007.11858): boxes of faces and hands.

https://github.com/jin-s13/COCO-WholeBody: each person of COCO has `face_box`, `lefthand_box` and
`righthand_box` as x, y, width, height in pixels, each with a flag `*_valid`.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from fairhuman.common.imagefiles import ImageError, opened
from fairhuman.data.importers.common import (
    Imported,
    check_out,
    coco_captions,
    counts,
    inside,
    read_json,
    write_data_set,
)
from fairhuman.errors import DataError

PARTS = {"faces": ("face",), "hands": ("lefthand", "righthand")}


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
    check_out(out, images)
    tree = _read(annotations)
    persons: dict[int, list[dict[str, Any]]] = defaultdict(list)
    try:
        for person in tree["annotations"]:
            persons[person["image_id"]].append(person)
        listed = {image["id"]: str(image["file_name"]) for image in tree["images"]}
        texts = coco_captions(captions, listed) if captions else dict.fromkeys(listed.values(), "")
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
    write_data_set(out, images, rows)
    return counts(rows, missing=missing)


def _boxes(persons: list[dict[str, Any]], size: tuple[int, int]) -> dict[str, list[list[float]]]:
    found: dict[str, list[list[float]]] = {key: [] for key in PARTS}
    for person in persons:
        if person.get("iscrowd"):
            continue
        for key, parts in PARTS.items():
            for part in parts:
                box = inside(person[f"{part}_box"], size) if person[f"{part}_valid"] else None
                if box:
                    found[key].append(box)
    return found


def _size(path: Path) -> tuple[int, int]:
    # COCO's boxes are in the pixels as stored, without EXIF orientation.
    try:
        with opened(path) as image:
            return image.size
    except ImageError as error:
        raise DataError(f"{path}: {error}") from None


def _read(path: Path) -> dict[str, Any]:
    tree = read_json(path)
    if not isinstance(tree, dict):
        raise DataError(f"{path}: is not COCO-WholeBody's format: it holds no object")
    return tree
