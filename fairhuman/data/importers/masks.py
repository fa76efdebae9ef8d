"""Mask images: a folder of face masks, one of hand masks, each mask named like its image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ImageOps

from fairhuman.common.images import open_mask
from fairhuman.data.folder import MASKS, UNREADABLE
from fairhuman.data.importers.common import (
    Imported,
    check_out,
    counts,
    images_by_stem,
    texts,
    upright_size,
    write_data_set,
)
from fairhuman.errors import DataError


@dataclass(frozen=True)
class ImportedMasks:
    """What an import of masks wrote."""

    done: Imported
    masks: dict[str, int]
    """Their number, by region."""
    bright: list[str]
    """Masks that are mostly white, which hardly any face or hand is."""


def import_masks(
    images: Path,
    out: Path,
    face_masks: Path | None = None,
    hand_masks: Path | None = None,
    invert: bool = False,
    captions: Path | None = None,
) -> ImportedMasks:
    """Write a data set of the images that have a mask into `out`; masks become grey PNG files.

    An image that lacks one of its masks is not annotated for that region.

    Args:
        images: the folder of the images.
        out: a folder that holds no data set yet.
        face_masks: the folder of the faces' masks, white = face; of the image's size.
        hand_masks: the same for hands.
        invert: black = region.
        captions: JSON lines with `file_name` and `text`; without it .txt files beside the images.

    Raises:
        DataError: a mask that cannot be read or has not its image's size, or no mask at all.
    """
    folders = {"face": face_masks, "hand": hand_masks}
    given = {region: folder for region, folder in folders.items() if folder is not None}
    if not given:
        raise DataError("import masks: give --face-masks, --hand-masks or both")
    check_out(out, images)
    for folder in given.values():
        if not folder.is_dir():
            raise DataError(f"{folder}: there is no such folder of masks")
    by_stem = {region: images_by_stem(folder) for region, folder in given.items()}
    names = {
        stem: name
        for stem, name in images_by_stem(images).items()
        if any(stem in masks for masks in by_stem.values())
    }
    if not names:
        raise DataError(f"{images}: no image has the name of a mask")
    captioned = texts(captions, list(names.values()), images)
    rows = []
    files: dict[str, Callable[[Path], None]] = {}
    bright = []
    for stem, name in names.items():
        row: dict[str, Any] = {"file_name": name, "text": captioned[name]}
        size = upright_size(images / name)
        for region, masks in by_stem.items():
            if stem not in masks:
                continue
            path = given[region] / masks[stem]
            if _mean(path, size, images / name, invert) > 0.5:
                bright.append(str(path))
            target = f"{MASKS}/{region}/{stem}.png"
            files[target] = partial(_write, path, invert)
            row[f"{region}_mask"] = target
        rows.append(row)
    write_data_set(out, images, rows, files)
    total = {region: sum(f"{region}_mask" in row for row in rows) for region in given}
    lacking = sum(any(f"{region}_mask" not in row for region in given) for row in rows)
    return ImportedMasks(counts(rows, unannotated=lacking), total, bright)


def _mean(path: Path, size: tuple[int, int], image: Path, invert: bool) -> float:
    """Return a mask's mean in [0, 1]; refuse it where it does not fit its image."""
    try:
        mask = open_mask(path)
    except UNREADABLE as error:
        raise DataError(f"{path}: cannot be read as an image: {error}") from None
    if mask.size != size:
        raise DataError(
            f"{path}: is {mask.size[0]} x {mask.size[1]} px, its image {image} is "
            f"{size[0]} x {size[1]}"
        )
    mean = float(np.asarray(mask).mean()) / 255
    return 1 - mean if invert else mean


def _write(source: Path, invert: bool, target: Path) -> None:
    mask = open_mask(source)
    (ImageOps.invert(mask) if invert else mask).save(target, "png")
