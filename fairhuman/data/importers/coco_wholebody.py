"""COCO-WholeBody (Jin et al. 2020, arXiv 2007.11858): boxes of faces and hands.

https://github.com/jin-s13/COCO-WholeBody: each person of COCO has `face_box`, `lefthand_box` and
`righthand_box` as x, y, width, height in pixels, each with a flag `*_valid`. COCO's own boxes are
in the pixels as stored, without EXIF orientation; where an image's declared width and height are
those of the upright image, its boxes are taken as they are (see `orientation`).
"""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

from fairhuman.common.quoting import shown
from fairhuman.data.importers.common import (
    Imported,
    check_out,
    coco_captions,
    counts,
    inside,
    numbers,
    read_json,
    write_data_set,
)
from fairhuman.data.importers.orientation import Shape, Size, in_stored_pixels, read_shape
from fairhuman.errors import DataError

PARTS = {"faces": ("face",), "hands": ("lefthand", "righthand")}


def import_coco_wholebody(
    annotations: Path, images: Path, out: Path, captions: Path | None = None
) -> Imported:
    """Write a data set of the annotated images into `out`: the images, and metadata.jsonl.

    Only boxes marked valid are taken, cut to the image; crowds are left out.

    Args:
        annotations: COCO-WholeBody's JSON file.
        images: the folder of the images.
        out: a folder that holds no data set yet.
        captions: COCO's captions JSON, or JSON lines with `file_name` and `text`; without it
            every caption is empty.

    Raises:
        DataError: a file that is not what it should be, an image that cannot be read or has not
            the declared size, an image without a caption, or a data set in `out` already.
    """
    check_out(out, images)
    tree = _read(annotations)
    persons: dict[int, list[dict[str, Any]]] = defaultdict(list)
    try:
        for person in tree["annotations"]:
            persons[person["image_id"]].append(person)
        listed = _listed(tree["images"])
        declared = {image["id"]: _declared(image) for image in tree["images"]}
        there = {key: name for key, name in sorted(listed.items()) if _is_file(images / name)}
        texts = coco_captions(captions, listed) if captions else dict.fromkeys(listed.values(), "")
        shapes = {key: _shape(images / name, declared[key]) for key, name in there.items()}
        stored = in_stored_pixels(
            list(shapes.values()), [declared[key] for key in shapes], habit=True
        )
        rows: list[dict[str, Any]] = []
        for (key, name), turn in zip(there.items(), stored, strict=True):
            if name not in texts:
                raise DataError(f"{captions}: has no caption for {name}")
            boxes = _boxes(persons[key], shapes[key], turn)
            rows.append({"file_name": name, "text": texts[name], **boxes})
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{annotations}: is not COCO-WholeBody's format: {type(error).__name__}({error})"[:300]
        ) from None
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{annotations}: {error}") from None
    missing = len(listed) - len(there)
    if not rows:
        raise DataError(f"{images}: holds none of the {missing} images that {annotations} names")
    write_data_set(out, images, rows)
    return counts(rows, missing=missing)


def _listed(images: list[dict[str, Any]]) -> dict[int, str]:
    """Return the images' file names by id."""
    listed: dict[int, str] = {}
    for image in images:
        key, given = image["id"], image["file_name"]
        if not isinstance(given, str) or not given:
            raise ValueError(f"file_name {shown(given)}: must be text")
        path = PurePosixPath(given)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"file_name {shown(given)} leads out of the folder")
        if key in listed:
            raise ValueError(f"two images have the id {shown(key)}")
        listed[key] = str(path)
    names = sorted(listed.values())
    twice = next((a for a, b in pairwise(names) if a == b), None)
    if twice is not None:
        raise ValueError(f"two images have the file_name {shown(twice)}")
    return listed


def _declared(image: dict[str, Any]) -> Size | None:
    width, height = image.get("width"), image.get("height")
    if width is None or height is None:
        return None
    if not all(type(side) is int and side > 0 for side in (width, height)):
        raise ValueError(
            f"image {shown(image['file_name'])}: width {shown(width)} and height {shown(height)} "
            "must be whole numbers above 0"
        )
    return (width, height)


def _shape(path: Path, declared: Size | None) -> Shape:
    shape = read_shape(path)
    if declared not in (None, shape.stored, shape.upright):
        assert declared is not None
        raise DataError(
            f"{path}: is {shape.stored[0]} x {shape.stored[1]} px, and its annotations are for "
            f"{declared[0]} x {declared[1]}: give the images that were annotated"
        )
    return shape


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _boxes(persons: list[dict[str, Any]], shape: Shape, turn: bool) -> dict[str, list[list[float]]]:
    found: dict[str, list[list[float]]] = {key: [] for key in PARTS}
    for person in persons:
        if person.get("iscrowd"):
            continue
        for key, parts in PARTS.items():
            for part in parts:
                if not _valid(person, part):
                    continue
                box = numbers(person[f"{part}_box"], f"{part}_box", 4)
                # Cut before it is turned: a box far outside would lose its digits.
                cut = inside(box, shape.stored if turn else shape.upright)
                if cut:
                    found[key].append(shape.turned_box(cut) if turn else cut)
    return {
        key: [[round(value, 2) for value in box] for box in boxes] for key, boxes in found.items()
    }


def _valid(person: dict[str, Any], part: str) -> bool:
    valid = person[f"{part}_valid"]
    if valid not in (0, 1):  # as numbers or as booleans
        raise ValueError(f"{part}_valid = {shown(valid)}: must be true or false")
    return bool(valid)


def _read(path: Path) -> dict[str, Any]:
    tree = read_json(path)
    if not isinstance(tree, dict):
        raise DataError(f"{path}: is not COCO-WholeBody's format: it holds no object")
    return tree
