"""kohya's sd-scripts: folders `N_name` of images, with captions next to them, and masks.

`train_data_dir` holds folders named for a number of repeats and a prompt: `10_anna`. Their images
are read, not those of folders in them. An image's caption is the first line of `a.txt` or
`a.caption`; without such a file it is the prompt of the folder's name. A folder of images without
such folders in it, as `image_dir` of a dataset config names one, is read too.

A mask says there which part of an image is trained at all; here it shows a region. It is an image
of the same name in another folder (`conditioning_data_dir`), or the image's alpha (`alpha_mask`).
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fairhuman.common.errors import DataError
from fairhuman.common.quoting import shown
from fairhuman.curation.importers import alpha
from fairhuman.curation.importers.common import by_stem, check_out, write_data_set
from fairhuman.curation.importers.folders import (
    ImportedFolder,
    mask_notes,
    mostly_white,
    read_captions,
    readable_images,
    such_as,
)
from fairhuman.curation.importers.mask_files import checked, put, target_of
from fairhuman.curation.importers.orientation import Shape
from fairhuman.data.captions import ENDINGS
from fairhuman.data.folder import find_images
from fairhuman.data.records import SHOWN, Problem

FOLDER = re.compile(r"(?P<repeats>\d{1,9})(_(?P<prompt>.*))?")
REGULARIZATION = re.compile(r"reg(\b|_|ulari[sz])", re.IGNORECASE)


@dataclass(frozen=True)
class KohyaMasks:
    """Where masks are, and what they show."""

    region: str
    folder: Path | None = None
    """Of mask images with the images' names; None: the images' alpha."""


@dataclass(frozen=True)
class _Folder:
    repeats: int
    prompt: str


def import_kohya(
    images: Path, out: Path, masks: KohyaMasks | None = None, caption_extension: str | None = None
) -> ImportedFolder:
    """Write a data set of the images in kohya's folders into `out`.

    Args:
        images: the folder that holds the folders N_name, or one of images alone.
        out: a folder that holds no data set yet.
        masks: None leaves them.
        caption_extension: the only ending of caption files; None: .txt, else .caption.

    Raises:
        DataError: no such folder or image, caption files or masks that cannot be read or do not fit
            their images.
    """
    check_out(out, images)
    names, left_out = find_images(images)
    if masks and masks.folder:
        names = _outside(images, names, masks.folder)
    folders, names = _taken(images, names, left_out)
    shapes = readable_images(images, names, left_out)
    captions = read_captions(images, list(shapes), left_out, _endings(caption_extension))
    if caption_extension and not captions.files:
        raise DataError(
            f"{images}: no image has a {caption_extension} file next to it; give the ending of the "
            "caption files as --caption-extension"
        )
    rows = {name: {"file_name": name, "text": captions.text(name)} for name in shapes}
    prompted = [
        name for name in shapes if name not in captions.files and folders[_top(name)].prompt
    ]
    for name in prompted:
        rows[name]["text"] = folders[_top(name)].prompt
    notes = _repeats(folders)
    if prompted:
        notes.append(
            f"{len(prompted)} images without a caption file, such as {prompted[0]}, have the "
            f"prompt of their folder's name: {shown(rows[prompted[0]]['text'])}"
        )
    if several := captions.several():
        notes.append(
            f"{len(several)} caption files hold several lines, such as that of {several[0]}: the "
            "first is taken, as kohya does without enable_wildcard"
        )
    files: dict[str, Callable[[Path], None]] = {}
    if masks:
        bright: list[str]
        if masks.folder:
            files, bright = _from_folder(images, masks.folder, masks.region, rows, shapes)
        else:
            files, bright = _from_alpha(images, masks.region, rows, left_out)
        notes += mask_notes(list(rows.values()), masks.region, bright)
    else:
        notes += _unread_alpha(images, list(shapes))
    write_data_set(out, images, list(rows.values()), files)
    return ImportedFolder(list(rows.values()), notes, left_out)


def _outside(images: Path, names: list[str], masks: Path) -> list[str]:
    """Return the images that are not in the folder of masks, which must be another."""
    if not masks.is_dir():
        raise DataError(f"{masks}: there is no such folder of masks")
    if masks.samefile(images):
        raise DataError(f"{masks}: holds the images; give the folder of their masks as --masks")
    within = Path(os.path.relpath(masks.resolve(), images.resolve())).as_posix() + "/"
    return [name for name in names if not name.startswith(within)]


def _top(name: str) -> str:
    """Return the folder of an image, "" for `images` itself."""
    return name.rpartition("/")[0]


def _endings(extension: str | None) -> tuple[str, ...]:
    if extension is None:
        return ENDINGS
    ending = f".{extension.removeprefix('.')}".lower()
    if ending == "." or "/" in ending:
        raise DataError(f"--caption-extension {extension}: must be an ending such as .txt")
    return (ending,)


def _taken(
    images: Path, names: Sequence[str], left_out: list[Problem]
) -> tuple[dict[str, _Folder], list[str]]:
    """Return the folders that kohya reads, and the names of their images."""
    held: dict[str, list[str]] = defaultdict(list)
    for name in names:
        held[_top(name)].append(name)
    folders = {place: found for place in held if (found := _folder(place))}
    if not folders and held.get(""):
        folders = {"": _folder(images.resolve().name) or _Folder(1, "")}
    if not folders:
        message = f"{images}: holds no images, and no folder of them named like 10_name"
        raise DataError("\n".join([*map(str, left_out[:SHOWN]), f"{message}{_hint(images, held)}"]))
    left_out += [
        Problem(place or ".", f"{len(stray)} images, such as {stray[0]}, {_why(place, folders)}")
        for place, stray in held.items()
        if place not in folders
    ]
    return folders, [name for name in names if _top(name) in folders]


def _folder(place: str) -> _Folder | None:
    """Return what the name of a folder says; None where it is none of kohya's."""
    match = FOLDER.fullmatch(place)
    if match is None or not int(match["repeats"]) or "/" in place:
        return None
    return _Folder(int(match["repeats"]), (match["prompt"] or "").strip())


def _hint(images: Path, places: Iterable[str]) -> str:
    """Return where such folders are, if they are deeper."""
    above = (place.rpartition("/") for place in places)
    deeper = next((parent for parent, _, last in above if parent and _folder(last)), None)
    return f"; give --images {images / deeper}" if deeper else ""


def _why(place: str, folders: Mapping[str, _Folder]) -> str:
    """Return why the images of a folder are not taken."""
    top = place.partition("/")[0]
    if place and (top in folders or "" in folders):
        return "which kohya does not read: move them up, or import them by themselves"
    if REGULARIZATION.match(place):
        return "which kohya does not read here; regularization images have no counterpart"
    return "which are in no folder named like 10_name: kohya does not read them"


def _repeats(folders: Mapping[str, _Folder]) -> list[str]:
    """Return a line for each number of repeats, which a data set does not keep."""
    by_count: dict[int, list[str]] = defaultdict(list)
    for place, folder in folders.items():
        by_count[folder.repeats].append(place or "the images")
    return [
        f"{count} repeats of {such_as(places)} are not taken: every image is drawn equally often, "
        "unless you import that folder by itself and set its repeats in data.sources"
        for count, places in sorted(by_count.items())
        if count > 1
    ]


def _from_folder(
    images: Path,
    folder: Path,
    region: str,
    rows: Mapping[str, dict[str, Any]],
    shapes: Mapping[str, Shape],
) -> tuple[dict[str, Callable[[Path], None]], list[str]]:
    """Name the masks of a folder in the rows; return what writes them, and those mostly white."""
    masks = by_stem(folder, find_images(folder)[0])
    images_of: dict[str, list[str]] = defaultdict(list)
    for name in shapes:
        stem = name.rpartition(".")[0]
        mask = masks.get(stem) or masks.get(stem.rpartition("/")[2])
        if mask:
            images_of[mask].append(name)
    shared = next((mask for mask, names in images_of.items() if len(names) > 1), None)
    if shared is not None:
        raise DataError(
            f"{folder / shared}: would be the mask of {such_as(images_of[shared])}; give each its "
            "own, in folders named as those of the images"
        )
    if not images_of:
        raise DataError(f"{folder}: no mask has the name of an image in {images}")
    found = [
        checked(folder / mask, images / name, name, region, shapes[name])
        for mask, (name,) in images_of.items()
    ]
    return put(found, rows), mostly_white(found)


def _from_alpha(
    images: Path, region: str, rows: dict[str, dict[str, Any]], left_out: list[Problem]
) -> tuple[dict[str, Callable[[Path], None]], list[str]]:
    """Take the images' alpha as their masks; see `_from_folder`."""
    by_stem(images, list(rows))  # each of a stem would be written under the same name
    files: dict[str, Callable[[Path], None]] = {}
    bright: list[str] = []
    for name in list(rows):
        try:
            mask = alpha.read_alpha(images / name)
        except DataError as error:
            left_out.append(Problem(name, str(error).removeprefix(f"{images / name}: ")))
            del rows[name]
            continue
        if mask is None:
            continue
        opaque = f"{name.rpartition('.')[0]}.png"
        rows[name] |= {"file_name": opaque, f"{region}_mask": target_of(name, region)}
        files[opaque] = partial(alpha.write_without_alpha, images / name)
        files[target_of(name, region)] = partial(alpha.write_alpha, images / name)
        if np.asarray(mask).mean() > 127.5:
            bright.append(name)
    if not files:
        raise DataError(f"{images}: no image has transparent pixels; leave out --alpha-mask")
    return files, bright


def _unread_alpha(images: Path, names: Sequence[str]) -> list[str]:
    """Return a line on images with alpha, which may be a mask."""
    with_alpha = [
        name
        for name in names
        if not name.lower().endswith((".jpg", ".jpeg")) and alpha.has_alpha(images / name)
    ]
    if not with_alpha:
        return []
    return [
        f"{len(with_alpha)} images have an alpha channel, such as {with_alpha[0]}: what is "
        "transparent is white in training; if it is the mask of faces or hands, import them again "
        "with --alpha-mask --region face or hand"
    ]
