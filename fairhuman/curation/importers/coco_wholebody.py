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

from fairhuman.common.errors import DataError
from fairhuman.common.quoting import shown
from fairhuman.curation.importers.common import (
    Imported,
    at,
    check_out,
    coco_captions,
    counts,
    inside,
    listed,
    numbers,
    read_json,
    write_data_set,
)
from fairhuman.curation.importers.orientation import Shape, Size, in_stored_pixels, read_shape
from fairhuman.data.records import Problem

PARTS = {"faces": ("face",), "hands": ("lefthand", "righthand")}

_Person = tuple[str, dict[str, Any]]
"""Where in the file, and what it says."""


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
    try:
        persons = _persons(tree)
        names, declared = _names(tree)
    except ValueError as error:
        raise DataError(f"{annotations}: is not COCO-WholeBody's format: {error}") from None
    there = {key: name for key, name in names.items() if _is_file(images / name)}
    texts = coco_captions(captions, names) if captions else dict.fromkeys(names.values(), "")
    shapes = {key: _shape(images / name, declared[key]) for key, name in there.items()}
    stored = in_stored_pixels(list(shapes.values()), [declared[key] for key in shapes], habit=True)
    rows: list[dict[str, Any]] = []
    for (key, name), turn in zip(there.items(), stored, strict=True):
        if name not in texts:
            raise DataError(f"{captions}: has no caption for {name}")
        try:
            boxes = _boxes(persons[key], shapes[key], turn)
        except ValueError as error:
            raise DataError(f"{annotations}: {error}") from None
        rows.append({"file_name": name, "text": texts[name], **boxes})
    missing = len(names) - len(there)
    strangers = sum(len(of) for key, of in persons.items() if key not in names)
    stray = Problem(str(annotations), f"{strangers} annotations of images it does not list")
    if not rows:
        raise DataError(f"{images}: holds none of the {missing} images that {annotations} names")
    write_data_set(out, images, rows)
    return counts(rows, missing=missing, left_out=[stray] if strangers else [])


def _persons(tree: dict[str, Any]) -> dict[Any, list[_Person]]:
    """Return the persons of each image, by its id."""
    found: dict[Any, list[_Person]] = defaultdict(list)
    for number, person in enumerate(listed(tree, "annotations")):
        place = f"annotations[{number}]"
        with at(place):
            found[_id(person["image_id"])].append((place, person))
    return found


def _names(tree: dict[str, Any]) -> tuple[dict[Any, str], dict[Any, Size | None]]:
    """Return the images' file names and their declared sizes, by id, in the order of the ids."""
    names: dict[Any, str] = {}
    declared: dict[Any, Size | None] = {}
    for number, image in enumerate(listed(tree, "images")):
        with at(f"images[{number}]"):
            key, name = _id(image["id"]), _file_name(image["file_name"])
            if key in names:
                raise ValueError(f"an image before it has the id {shown(key)} too")
            names[key], declared[key] = name, _declared(image)
    twice = next((a for a, b in pairwise(sorted(names.values())) if a == b), None)
    if twice is not None:
        raise ValueError(f"two images have the file_name {shown(twice)}")
    ordered = sorted(names, key=lambda key: (isinstance(key, str), key))
    return {key: names[key] for key in ordered}, declared


def _id(value: Any) -> int | str:
    if type(value) not in (int, str):
        raise ValueError(f"the image's id is {shown(value)}: must be a whole number or text")
    return value


def _file_name(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"file_name {shown(value)}: must be text")
    path = PurePosixPath(value)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"file_name {shown(value)} leads out of the folder")
    return str(path)


def _declared(image: dict[str, Any]) -> Size | None:
    width, height = image.get("width"), image.get("height")
    if width is None or height is None:
        return None
    if not all(type(side) is int and side > 0 for side in (width, height)):
        raise ValueError(
            f"width {shown(width)} and height {shown(height)} must be whole numbers above 0"
        )
    return (width, height)


def _shape(path: Path, declared: Size | None) -> Shape:
    shape = read_shape(path)
    if declared not in (None, shape.stored, shape.upright):
        assert declared is not None
        raise DataError(
            f"{path}: is {shape.stored[0]} x {shape.stored[1]} px, and its annotations are for "
            f"{shown(declared[0])} x {shown(declared[1])}: give the images that were "
            "annotated"
        )
    return shape


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _boxes(persons: list[_Person], shape: Shape, turn: bool) -> dict[str, list[list[float]]]:
    found: dict[str, list[list[float]]] = {key: [] for key in PARTS}
    for place, person in persons:
        with at(place):
            if _flag("iscrowd", person.get("iscrowd", 0)):
                continue
            for key, parts in PARTS.items():
                boxes = [
                    _box(person, part, shape, turn) for part in parts if _is_valid(person, part)
                ]
                found[key] += [box for box in boxes if box]
    return found


def _box(person: dict[str, Any], part: str, shape: Shape, turn: bool) -> list[float] | None:
    box = numbers(person[f"{part}_box"], f"{part}_box", 4)
    # Cut before it is turned: a box far outside would lose its digits.
    cut = inside(box, shape.stored if turn else shape.upright)
    if cut is None:
        return None
    return [round(value, 2) for value in (shape.turned_box(cut) if turn else cut)]


def _is_valid(person: dict[str, Any], part: str) -> bool:
    return _flag(f"{part}_valid", person[f"{part}_valid"])


def _flag(key: str, value: Any) -> bool:
    if value not in (0, 1):  # as numbers or as booleans
        raise ValueError(f"{key} = {shown(value)}: must be true or false")
    return bool(value)


def _read(path: Path) -> dict[str, Any]:
    tree = read_json(path)
    if not isinstance(tree, dict):
        raise DataError(f"{path}: is not COCO-WholeBody's format: it holds no object")
    return tree
