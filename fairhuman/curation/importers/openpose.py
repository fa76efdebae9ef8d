"""OpenPose's and DWPose's keypoint JSON: boxes around the keypoints of faces and hands.

One JSON file per image, `STEM.json` or `STEM_keypoints.json`. Read are OpenPose's `people` with
`face_keypoints_2d` (70), `hand_left_keypoints_2d` and `hand_right_keypoints_2d` (21 each), also in
the list and with the canvas size that ComfyUI's nodes write; and the 133 keypoints of
COCO-WholeBody under `keypoints`, flat or in MMPose's `instances` or `instance_info`.

Keypoints are in the pixels of the upright image, for these tools apply EXIF orientation when they
read; where the canvas has the shape of the image as it is stored, they are turned with it (see
`orientation`). A keypoint that is NaN counts as not found.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairhuman.common.errors import DataError
from fairhuman.common.quoting import shown
from fairhuman.curation.geometry import FLESH, around
from fairhuman.curation.importers.common import (
    FAR,
    Imported,
    at,
    check_out,
    counts,
    images_by_stem,
    inside,
    listed,
    numbers,
    read_json,
    texts,
    write_data_set,
)
from fairhuman.curation.importers.orientation import Shape, in_stored_pixels, read_shape
from fairhuman.curation.keypoints import COUNT, FACE, LEFT, RIGHT, Points, sure

WHOLEBODY = {"face": FACE, "left": LEFT, "right": RIGHT}
OPENPOSE = {
    "face": "face_keypoints_2d",
    "left": "hand_left_keypoints_2d",
    "right": "hand_right_keypoints_2d",
}
# What the list of people is called.
_PEOPLE = ("people", "instances", "instance_info", "predictions")
PARTS = {"face": ("face",), "hand": ("left", "right")}


def import_openpose(
    keypoints: Path,
    images: Path,
    out: Path,
    captions: Path | None = None,
    confidence: float = 0.3,
) -> Imported:
    """Write a data set of the images that have keypoints into `out`.

    A face or a hand that no file of the set has keypoints for counts as not annotated.

    Args:
        keypoints: the folder of the JSON files.
        images: the folder of the images.
        out: a folder that holds no data set yet.
        captions: JSON lines with `file_name` and `text`; without it .txt files next to the images.
        confidence: keypoints less sure are left out.

    Raises:
        DataError: a file that is not what it should be, or no image with keypoints.
    """
    check_out(out, images)
    if not keypoints.is_dir():
        raise DataError(f"{keypoints}: there is no such folder of keypoint files")
    found: list[_Pose] = []
    unannotated = 0
    names, left_out = images_by_stem(images)
    for stem, name in names.items():
        paths = [keypoints / f"{stem}{end}" for end in ("_keypoints.json", ".json")]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            unannotated += 1
            continue
        found.append(_Pose(name, read_shape(images / name, whole=True), *_people(path)))
    if not found:
        raise DataError(
            f"{keypoints}: holds no STEM.json or STEM_keypoints.json of the images in {images}"
        )
    looked_for = {part for pose in found for person in pose.people for part in person}
    captioned = texts(captions, [pose.name for pose in found], images, left_out)
    stored = in_stored_pixels(
        [pose.shape for pose in found], [pose.canvas for pose in found], habit=False
    )
    rows = []
    for pose, turn in zip(found, stored, strict=True):
        row: dict[str, Any] = {"file_name": pose.name, "text": captioned[pose.name]}
        for region, parts in PARTS.items():
            if looked_for.intersection(parts):
                boxes = [
                    _box(pose.placed(person[part], turn), region, confidence, pose.shape)
                    for person in pose.people
                    for part in parts
                    if part in person
                ]
                row[f"{region}s"] = [box for box in boxes if box]
        rows.append(row)
    write_data_set(out, images, rows)
    return counts(rows, unannotated=unannotated, left_out=left_out)


@dataclass(frozen=True)
class _Pose:
    """The keypoints of an image as their file has them."""

    name: str
    shape: Shape
    canvas: tuple[float, float] | None
    """Width and height that they are made for, where the file says so."""
    people: list[dict[str, Points]]

    def placed(self, points: Points, turn: bool) -> Points:
        """Return keypoints in pixels of the upright image; `turn`: they are of the stored one."""
        size = np.array(self.shape.stored if turn else self.shape.upright, dtype=np.float64)
        sure = points[(points[:, 2] > 0) & np.isfinite(points).all(axis=1), :2]
        # Shares are told by their range: keypoints of a face never lie in one corner pixel.
        if len(sure) and np.abs(sure).max() <= 2.0:
            places = points[:, :2] * size
        elif self.canvas:
            places = points[:, :2] * (size / np.array(self.canvas, dtype=np.float64))
        else:
            places = points[:, :2]
        return np.column_stack([self.shape.turned(places) if turn else places, points[:, 2]])


def _people(path: Path) -> tuple[tuple[float, float] | None, list[dict[str, Points]]]:
    """Return the canvas, and the keypoints of each person by part, as the file has them."""
    tree = read_json(path, constants=True)
    try:
        if isinstance(tree, list):
            if len(tree) == 1 and isinstance(tree[0], dict):
                tree = tree[0]
            elif all(isinstance(item, dict) and "keypoints" in item for item in tree):
                tree = {"instances": tree}
        if not isinstance(tree, dict):
            raise ValueError(f"it holds {shown(tree)}, not an object")
        key = next((key for key in _PEOPLE if key in tree), None)
        if key is None:
            raise ValueError(f"it has none of {', '.join(_PEOPLE)}")
        people = []
        for number, person in enumerate(listed(tree, key)):
            with at(f"{key}[{number}]"):
                people.append(_parts(person))
        return _canvas((tree.get("canvas_width"), tree.get("canvas_height"))), people
    except ValueError as error:
        raise DataError(
            f"{path}: holds no keypoints of OpenPose (`people`) or of COCO-WholeBody "
            f"(`keypoints`, 133 of them): {error}"
        ) from None


def _canvas(sides: tuple[Any, Any]) -> tuple[float, float] | None:
    if sides == (None, None):
        return None
    width, height = numbers(list(sides), "canvas_width and canvas_height", 2)
    if width <= 0 or height <= 0:
        raise ValueError(f"a canvas of {width:g} x {height:g}")
    return (width, height)


def _parts(person: dict[str, Any]) -> dict[str, Points]:
    if "keypoints" in person:
        points = _points(person["keypoints"], person.get("keypoint_scores"))
        if len(points) != COUNT:
            raise ValueError(f"a person has {len(points)} keypoints")
        return {part: points[place] for part, place in WHOLEBODY.items()}
    if not any(key in person for key in (*OPENPOSE.values(), "pose_keypoints_2d")):
        raise ValueError("a person has none of OpenPose's keys")
    return {
        part: _points(person[key], key=key) for part, key in OPENPOSE.items() if person.get(key)
    }


def _points(values: Any, scores: Any = None, key: str = "keypoints") -> Points:
    array = _array(values, key)
    if array.ndim == 1 and len(array) % 3 == 0:
        array = array.reshape(-1, 3)
    if array.ndim != 2 or array.shape[1] not in (2, 3):
        raise ValueError(f"{key}: has the shape {list(array.shape)}, not [N, 3]")
    if (np.abs(array[np.isfinite(array)]) > FAR).any():
        raise ValueError(f"{key}: a keypoint is in no picture")
    if scores is not None:
        found = _array(scores, "keypoint_scores")
        if found.shape != (len(array),):
            raise ValueError(f"keypoint_scores: has the shape {list(found.shape)}")
        return np.column_stack([array[:, :2], found])
    if array.shape[1] == 2:
        return np.column_stack([array, np.ones(len(array))])
    return array


def _array(values: Any, key: str) -> NDArray[np.float64]:
    """Return nested lists of numbers as an array; null, as some tools write it, is NaN."""
    flat = values
    while isinstance(flat, list) and flat and isinstance(flat[0], list):
        flat = list(chain.from_iterable(row if isinstance(row, list) else [row] for row in flat))
    if not isinstance(flat, list) or not all(
        value is None or type(value) in (int, float) for value in flat
    ):
        raise ValueError(f"{key}: must be a list of numbers")  # numpy would read text as numbers
    return np.asarray(values, dtype=np.float64)


def _box(points: Points, region: str, confidence: float, shape: Shape) -> list[float] | None:
    used = sure(points, region, confidence)
    return None if used is None else inside(around(used[:, :2], FLESH), shape.upright)
