"""Mask images: each named like its image, in a folder of their own or next to the images.

In a folder of their own, a mask of `a.jpg` is `a.png` or `a-masklabel.png`, as OneTrainer names
them; in the images' folder it is `a-masklabel.png`, so that no photograph is its own mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairhuman.common.errors import DataError
from fairhuman.curation.importers.common import (
    Imported,
    by_stem,
    check_out,
    counts,
    images_by_stem,
    texts,
    write_data_set,
)
from fairhuman.curation.importers.mask_files import Mask, checked, put
from fairhuman.curation.importers.orientation import read_shape
from fairhuman.data.folder import MASK_ENDING, find_images, find_labels
from fairhuman.data.records import Problem


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
    suffix: str | None = None,
) -> ImportedMasks:
    """Write a data set of the images that have a mask into `out`; masks become grey PNG files.

    An image that lacks one of its masks is not annotated for that region.

    Args:
        images: the folder of the images.
        out: a folder that holds no data set yet.
        face_masks: the folder of the faces' masks, white = face; of the image's size.
        hand_masks: the same for hands.
        invert: black = region.
        captions: JSON lines with `file_name` and `text`; without it the images' caption files.
        suffix: what follows the image's name in a mask's, such as "-mask"; None: see above.

    Raises:
        DataError: a mask that cannot be read, that has not its image's size or is the image, or
            no mask at all.
    """
    folders = {"face": face_masks, "hand": hand_masks}
    given = {region: folder for region, folder in folders.items() if folder is not None}
    if not given:
        raise DataError("import masks: give --face-masks, --hand-masks or both")
    check_out(out, images)
    for folder in given.values():
        if not folder.is_dir():
            raise DataError(f"{folder}: there is no such folder of masks")
    if face_masks and hand_masks and face_masks.samefile(hand_masks):
        raise DataError(
            f"import masks: --face-masks and --hand-masks are both {face_masks}, so every mask "
            "would be both; give two folders, or one of the two"
        )
    stems, left_out = images_by_stem(images)
    found: list[Mask] = []
    for region, folder in given.items():
        masks = _masks(folder, images, suffix, left_out)
        shapes = {
            stem: read_shape(images / stems[stem], whole=True) for stem in stems if stem in masks
        }
        found += [
            checked(folder / masks[stem], images / stems[stem], stems[stem], region, shape, invert)
            for stem, shape in shapes.items()
        ]
    if not found:
        raise DataError(f"{images}: no image has the name of a mask")
    names = [name for name in stems.values() if name in {mask.image for mask in found}]
    captioned = texts(captions, names, images, left_out)
    rows: dict[str, dict[str, Any]] = {
        name: {"file_name": name, "text": captioned[name]} for name in names
    }
    write_data_set(out, images, list(rows.values()), put(found, rows, invert))
    total = {region: sum(mask.region == region for mask in found) for region in given}
    lacking = sum(any(f"{region}_mask" not in row for region in given) for row in rows.values())
    done = counts(list(rows.values()), unannotated=lacking, left_out=left_out)
    return ImportedMasks(done, total, [str(mask.path) for mask in found if mask.mean > 0.5])


def _masks(
    folder: Path, images: Path, suffix: str | None, left_out: list[Problem]
) -> dict[str, str]:
    """Return the masks' file names by their images' names without suffix."""
    own = folder.samefile(images)
    if suffix == "" and own:
        raise DataError(f"{folder}: holds the images themselves: their masks need a --mask-suffix")
    ending = MASK_ENDING if suffix is None else suffix
    ended = by_stem(folder, find_labels(folder, (ending.lower(),)), ending) if ending else {}
    plain = {}
    if (suffix is None and not own) or suffix == "":
        names, problems = find_images(folder)
        plain = by_stem(folder, names)
        left_out += problems
    both = next((stem for stem in plain if stem in ended), None)
    if both is not None:
        raise DataError(
            f"{folder}: {plain[both]} and {ended[both]} are both masks of {both}; choose with "
            f"--mask-suffix '' or --mask-suffix={ending}"
        )
    if own and not ended:
        raise DataError(
            f"{folder}: is the images' own folder and holds no NAME{ending}.png; give the masks' "
            "folder, or the end of their names as --mask-suffix"
        )
    return plain | ended
