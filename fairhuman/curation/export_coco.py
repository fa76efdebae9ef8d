"""A data set's annotations as COCO's JSON, for labelling tools and other trainers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairhuman.common.errors import DataError
from fairhuman.common.files import write_text
from fairhuman.common.images import open_mask
from fairhuman.common.masks import extent
from fairhuman.data.folder import open_photograph, read_rows
from fairhuman.data.records import Problem, Reading, check_entries, read_entries
from fairhuman.data.stores.folder import METADATA, FolderStore

CATEGORIES = {"face": 1, "hand": 2}


@dataclass(frozen=True)
class Exported:
    """What an export wrote."""

    images: int
    annotations: int


def export_coco(root: Path, out: Path) -> Exported:
    """Write the boxes of a data set, and its masks where there are no boxes, as COCO's JSON.

    Sizes, boxes and masks are in pixels of the upright images: whoever reads the file applies EXIF
    orientation to the images. An image has its caption under `caption` and, where nobody looked
    for a region, that region under `not_annotated`, which COCO has no word for.

    Args:
        root: the data set's folder.
        out: the file.

    Raises:
        DataError: the data set has a mistake, each in a line.
        OutputError: the file cannot be written.
    """
    reading = Reading(list(CATEGORIES), unannotated="absent")
    entries, problems = read_entries(FolderStore(root), reading)
    problems += [found for found in check_entries(entries) if isinstance(found, Problem)]
    if problems:
        raise DataError("\n".join(map(str, problems[:20])))
    if not entries:
        raise DataError(f"{root / METADATA}: holds no image")
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, row in enumerate(read_rows(root), start=1):
        width, height = open_photograph(root / row["file_name"]).size
        image = {"id": number, "file_name": row["file_name"], "width": width, "height": height}
        lacking = [region for region in CATEGORIES if not _annotated(row, region)]
        image |= {"caption": row["text"]} | ({"not_annotated": lacking} if lacking else {})
        images.append(image)
        for region, category in CATEGORIES.items():
            for found in _annotations(root, row, region):
                head = {"id": len(annotations) + 1, "image_id": number, "category_id": category}
                annotations.append(head | found | {"iscrowd": int("segmentation" in found)})
    tree = {
        "info": {
            "description": f"exported from {root.name}; sizes, boxes and masks are in pixels of "
            "the upright images (EXIF orientation applied)"
        },
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in CATEGORIES.items()],
    }
    write_text(out, json.dumps(tree, ensure_ascii=False))
    return Exported(len(images), len(annotations))


def _annotated(row: Mapping[str, Any], region: str) -> bool:
    return row.get(f"{region}s") is not None or row.get(f"{region}_mask") is not None


def _annotations(root: Path, row: Mapping[str, Any], region: str) -> Iterator[dict[str, Any]]:
    boxes = row.get(f"{region}s")
    if boxes is not None:
        for box in boxes:
            yield {"bbox": box, "area": box[2] * box[3]}
        return
    if not row.get(f"{region}_mask"):
        return
    mask = np.asarray(open_mask(root / row[f"{region}_mask"])) >= 128
    if around := extent(mask):
        yield {
            "bbox": list(around),
            "area": int(mask.sum()),
            "segmentation": {"size": list(mask.shape), "counts": run_lengths(mask)},
        }


def run_lengths(mask: NDArray[np.bool_]) -> list[int]:
    """Return COCO's uncompressed run lengths: column by column, zeros first."""
    flat = np.concatenate([[False], mask.T.reshape(-1)])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff(np.concatenate([[0], changes, [mask.size]])).astype(int).tolist()
