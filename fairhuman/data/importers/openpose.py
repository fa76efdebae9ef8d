"""OpenPose's and DWPose's keypoint JSON: boxes around the keypoints of faces and hands.

One JSON file per image, `STEM.json` or `STEM_keypoints.json`. Read are OpenPose's `people` with
`face_keypoints_2d` (70), `hand_left_keypoints_2d` and `hand_right_keypoints_2d` (21 each), also in
the list and with the canvas size that ComfyUI's nodes write; and the 133 keypoints of
COCO-WholeBody under `keypoints`, flat or in MMPose's `instances` or `instance_info`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairhuman.annotation.geometry import around
from fairhuman.data.importers.common import (
    Imported,
    check_out,
    counts,
    images_by_stem,
    inside,
    read_json,
    texts,
    upright_size,
    write_data_set,
)
from fairhuman.errors import DataError

# Where COCO-WholeBody's 133 keypoints hold a face and the two hands.
WHOLEBODY = {"face": slice(23, 91), "left": slice(91, 112), "right": slice(112, 133)}
OPENPOSE = {
    "face": "face_keypoints_2d",
    "left": "hand_left_keypoints_2d",
    "right": "hand_right_keypoints_2d",
}
PARTS = {"faces": ("face",), "hands": ("left", "right")}

# Fewer sure keypoints than these say where a corner of a face or hand is, not where it is.
LEAST = {"face": 12, "left": 5, "right": 5}
# Keypoints lie on joints and features; the box reaches this share of its longer side further.
MARGIN = 0.1

Points = NDArray[np.float64]
"""[N, 3]: x, y, confidence."""


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
        captions: JSON lines with `file_name` and `text`; without it .txt files beside the images.
        confidence: keypoints less sure are left out.

    Raises:
        DataError: a file that is not what it should be, or no image with keypoints.
    """
    check_out(out, images)
    if not keypoints.is_dir():
        raise DataError(f"{keypoints}: there is no such folder of keypoint files")
    found: list[tuple[str, tuple[int, int], list[dict[str, Points]]]] = []
    unannotated = 0
    for stem, name in images_by_stem(images).items():
        paths = [keypoints / f"{stem}{end}" for end in ("_keypoints.json", ".json")]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            unannotated += 1
            continue
        size = upright_size(images / name)
        found.append((name, size, _people(path, size)))
    if not found:
        raise DataError(
            f"{keypoints}: holds no STEM.json or STEM_keypoints.json of the images in {images}"
        )
    looked_for = {part for _, _, people in found for person in people for part in person}
    captioned = texts(captions, [name for name, _, _ in found], images)
    rows = []
    for name, size, people in found:
        row: dict[str, Any] = {"file_name": name, "text": captioned[name]}
        for key, parts in PARTS.items():
            if looked_for.intersection(parts):
                boxes = [
                    _box(person[part], LEAST[part], confidence, size)
                    for person in people
                    for part in parts
                    if part in person
                ]
                row[key] = [box for box in boxes if box]
        rows.append(row)
    write_data_set(out, images, rows)
    return counts(rows, unannotated=unannotated)


def _people(path: Path, size: tuple[int, int]) -> list[dict[str, Points]]:
    """Return the keypoints of each person by part, in the image's pixels."""
    tree = read_json(path)
    try:
        if isinstance(tree, list):
            if len(tree) == 1 and isinstance(tree[0], dict):
                tree = tree[0]
            elif all(isinstance(item, dict) and "keypoints" in item for item in tree):
                tree = {"instances": tree}
        people = next(
            tree[key]
            for key in ("people", "instances", "instance_info", "predictions")
            if key in tree
        )
        canvas = (tree.get("canvas_width"), tree.get("canvas_height"))
        parts = [_parts(person) for person in people]
        return [
            {name: _scaled(points, canvas, size) for name, points in person.items()}
            for person in parts
        ]
    except (StopIteration, KeyError, TypeError, ValueError, AttributeError) as error:
        detail = f": {error}" if str(error) else ""
        raise DataError(
            f"{path}: holds no keypoints of OpenPose (`people`) or of COCO-WholeBody "
            f"(`keypoints`, 133 of them){detail}"
        ) from None


def _parts(person: dict[str, Any]) -> dict[str, Points]:
    if "keypoints" in person:
        points = _points(person["keypoints"], person.get("keypoint_scores"))
        if len(points) != 133:
            raise ValueError(f"a person has {len(points)} keypoints")
        return {part: points[place] for part, place in WHOLEBODY.items()}
    if not any(key in person for key in (*OPENPOSE.values(), "pose_keypoints_2d")):
        raise ValueError("a person has none of OpenPose's keys")
    return {part: _points(person[key]) for part, key in OPENPOSE.items() if person.get(key)}


def _points(values: Any, scores: Any = None) -> Points:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 1:
        array = array.reshape(-1, 3)
    if array.ndim != 2 or array.shape[1] not in (2, 3):
        raise ValueError(f"keypoints of shape {array.shape}")
    if scores is not None:
        return np.column_stack([array[:, :2], np.asarray(scores, dtype=np.float64)])
    if array.shape[1] == 2:
        return np.column_stack([array, np.ones(len(array))])
    return array


def _scaled(points: Points, canvas: Sequence[Any], size: tuple[int, int]) -> Points:
    """Bring keypoints to the image's pixels: from another canvas, or from shares of the image."""
    # Shares are told by their range: keypoints of a face never lie in one corner pixel.
    present = points[points[:, 2] > 0, :2]
    if len(present) and np.abs(present).max() <= 2.0:
        factor = np.array(size, dtype=np.float64)
    elif all(isinstance(side, int | float) and side > 0 for side in canvas):
        factor = np.array(size) / np.array(canvas, dtype=np.float64)
    else:
        return points
    return np.column_stack([points[:, :2] * factor, points[:, 2]])


def _box(
    points: Points, least: int, confidence: float, size: tuple[int, int]
) -> list[float] | None:
    sure = points[(points[:, 2] >= confidence) & np.isfinite(points).all(axis=1), :2]
    if len(sure) < least:
        return None
    return inside(around(sure, MARGIN), size)
