"""OneTrainer's concepts: `a.jpg` with `a.txt`, `a-masklabel.png` and `a-condlabel.png` next to it.

Each line of `a.txt` is a caption of its own there, one of which is drawn. A mask says there which
part of an image is trained at all; here it shows a region. `a-condlabel.png` is the control image.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fairhuman.common.errors import DataError
from fairhuman.curation.importers.common import by_stem, check_out, write_data_set
from fairhuman.curation.importers.folders import (
    ImportedFolder,
    mask_notes,
    mostly_white,
    read_captions,
    readable,
    readable_images,
)
from fairhuman.curation.importers.mask_files import checked, put
from fairhuman.curation.importers.orientation import Shape
from fairhuman.data.folder import CONTROL_ENDING, MASK_ENDING, find_images, find_labels
from fairhuman.data.records import CONTROL, Problem


def import_onetrainer(images: Path, out: Path, region: str | None = None) -> ImportedFolder:
    """Write a data set of the images below a folder into `out`.

    Args:
        images: the folder of a concept.
        out: a folder that holds no data set yet.
        region: what the masks show; None leaves them.

    Raises:
        DataError: no image, caption files or masks that cannot be read or do not fit their images.
    """
    check_out(out, images)
    names, left_out = find_images(images)
    masks, controls = (
        by_stem(images, find_labels(images, (ending,)), ending)
        for ending in (MASK_ENDING, CONTROL_ENDING)
    )
    shapes = readable_images(images, names, left_out)
    captions = read_captions(images, list(shapes), left_out, (".txt",))
    rows: dict[str, dict[str, Any]] = {
        name: {"file_name": name, "text": captions.text(name)} for name in shapes
    }
    notes = []
    if several := captions.several():
        notes.append(
            f"{len(several)} caption files hold several lines, such as that of {several[0]}: the "
            "first is taken, where OneTrainer draws one of them each time"
        )
    stems = {name.rpartition(".")[0] for name in names}
    left_out += [
        Problem(label, "no image has its name")
        for labels in (masks, controls)
        for stem, label in labels.items()
        if stem not in stems
    ]
    _put_controls(images, controls, rows, shapes, left_out)
    files = {}
    if region is not None:
        images_of = by_stem(images, [name for name in shapes if name.rpartition(".")[0] in masks])
        if not images_of:
            raise DataError(
                f"{images}: no image has a mask (NAME{MASK_ENDING}.png); leave out --region"
            )
        found = [
            checked(images / masks[stem], images / name, name, region, shapes[name])
            for stem, name in images_of.items()
        ]
        files = put(found, rows)
        notes += mask_notes(list(rows.values()), region, mostly_white(found))
    elif masks:
        notes.append(
            f"{len(masks)} masks are not taken, such as {next(iter(masks.values()))}: if they show "
            "faces or hands, import them again with --region face or hand"
        )
    write_data_set(out, images, list(rows.values()), files)
    return ImportedFolder(list(rows.values()), notes, left_out)


def _put_controls(
    images: Path,
    controls: dict[str, str],
    rows: dict[str, dict[str, Any]],
    shapes: dict[str, Shape],
    left_out: list[Problem],
) -> None:
    """Name the control images in the rows of their images, unless their sizes differ."""
    named = {name: controls.get(name.rpartition(".")[0]) for name in rows}
    with_control = {name: control for name, control in named.items() if control}
    if not with_control:
        return
    found = readable(images, list(dict.fromkeys(with_control.values())), left_out)
    for name, control in with_control.items():
        if control not in found:
            continue
        own, size = found[control].upright, shapes[name].upright
        if own == size:
            rows[name][CONTROL] = control
        else:
            left_out.append(
                Problem(
                    control,
                    f"is {own[0]} x {own[1]} px, its image {size[0]} x {size[1]}: make them alike",
                )
            )
