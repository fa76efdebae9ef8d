"""Boxes and masks lie on what they annotate, whatever EXIF says: importers, annotate, export."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from fairhuman.common.errors import DataError
from fairhuman.common.images import open_image, open_mask
from fairhuman.curation.annotation.annotate import annotate
from fairhuman.curation.annotation.detector import DetectorChoice
from fairhuman.curation.export_coco import export_coco
from fairhuman.curation.importers.coco_wholebody import import_coco_wholebody
from fairhuman.curation.importers.masks import import_masks
from fairhuman.curation.importers.openpose import import_openpose
from fairhuman.curation.importers.yolo import import_yolo

WIDE, SQUARE = (160, 80), (96, 96)
# The face in the stored pixels: left, top, width, height; no symmetry of the image keeps it.
FACE = (66, 8, 24, 16)
ORIENTATIONS = range(1, 9)

Box = tuple[int, int, int, int]


def stored_picture(size: tuple[int, int]) -> Image.Image:
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    x, y, w, h = FACE
    pixels[y : y + h, x : x + w] = (255, 0, 0)
    return Image.fromarray(pixels)


def save(path: Path, size: tuple[int, int], orientation: int) -> Box:
    """Write the picture with an orientation; return the face's box as a viewer shows it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored_picture(size).save(path, exif=exif)
    with Image.open(path) as image:
        return red_box(ImageOps.exif_transpose(image))


def red_box(image: Image.Image) -> Box:
    pixels = np.asarray(image.convert("RGB")).astype(int)
    ys, xs = np.nonzero((pixels[..., 0] > 150) & (pixels[..., 1] < 90))
    return (int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1)


def upright(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    return size[::-1] if orientation >= 5 else size


@pytest.fixture(params=[".png", ".jpg", ".tiff", ".webp"])
def suffix(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def pictures(
    folder: Path, size: tuple[int, int], suffix: str = ".png", which: Any = ORIENTATIONS
) -> dict[str, tuple[int, Box]]:
    """Write a picture for each orientation; return orientation and upright face by file name."""
    folder.mkdir()
    names = {f"o{i}{suffix}": i for i in which}
    return {name: (i, save(folder / name, size, i)) for name, i in names.items()}


def check(out: Path, truth: dict[str, tuple[int, Box]]) -> None:
    """Every row has one face, where the upright image shows it."""
    rows = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert {row["file_name"] for row in rows} == set(truth)
    for row in rows:
        expected = truth[row["file_name"]][1]
        assert red_box(open_image(out / row["file_name"])) == pytest.approx(expected, abs=2)
        np.testing.assert_allclose(row["faces"], [expected], atol=2, err_msg=row["file_name"])


def coco(
    tmp_path: Path, truth: dict[str, tuple[int, Box]], declare: Callable[[int], dict[str, int]]
) -> Path:
    """Write COCO-WholeBody annotations; boxes are upright where `declare` says "upright"."""
    images, persons = [], []
    for number, (name, (orientation, face)) in enumerate(truth.items()):
        said = declare(orientation)
        box = face if said.pop("upright", False) else FACE
        images.append({"id": number, "file_name": name, **said})
        person: dict[str, Any] = {"image_id": number, "face_box": list(box), "face_valid": True}
        for hand in ("lefthand", "righthand"):
            person |= {f"{hand}_box": [0, 0, 0, 0], f"{hand}_valid": False}
        persons.append(person)
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"images": images, "annotations": persons}))
    import_coco_wholebody(path, tmp_path / "images", tmp_path / "out")
    return tmp_path / "out"


def test_coco_boxes_of_stored_pixels_are_turned(tmp_path: Path, suffix: str) -> None:
    truth = pictures(tmp_path / "images", WIDE, suffix)
    check(coco(tmp_path, truth, lambda _: {"width": WIDE[0], "height": WIDE[1]}), truth)


def test_coco_boxes_of_upright_pixels_are_not_turned(tmp_path: Path) -> None:
    # Orientations 2 to 4 keep the size: those that swap the sides show how the file was made.
    truth = pictures(tmp_path / "images", WIDE)

    def declare(orientation: int) -> dict[str, int]:
        width, height = upright(WIDE, orientation)
        return {"width": width, "height": height, "upright": True}

    check(coco(tmp_path, truth, declare), truth)


@pytest.mark.parametrize("declared", [{}, {"width": SQUARE[0], "height": SQUARE[1]}])
def test_coco_boxes_are_of_stored_pixels_where_nothing_shows_it(
    tmp_path: Path, declared: dict[str, int]
) -> None:
    truth = pictures(tmp_path / "images", SQUARE)
    check(coco(tmp_path, truth, lambda _: dict(declared)), truth)


def test_coco_annotations_of_other_images_are_refused(tmp_path: Path) -> None:
    truth = pictures(tmp_path / "images", WIDE, which=[1])
    with pytest.raises(DataError, match=r"160 x 80 px, and its annotations are for 320 x 160"):
        coco(tmp_path, truth, lambda _: {"width": 320, "height": 160})


def openpose(tmp_path: Path, name: str, box: Box, canvas: tuple[int, int] | None) -> None:
    """Write keypoints whose box, with the importer's margin, is this one."""
    x, y, w, h = box
    grow = 0.1 * max(w, h) / 1.2
    low, high = (x + grow, y + grow), (x + w - grow, y + h - grow)
    corners = [low, (high[0], low[1]), (low[0], high[1]), high] * 5
    face = [value for point in corners for value in (*point, 1.0)]
    tree: dict[str, Any] = {"people": [{"face_keypoints_2d": face}]}
    if canvas:
        tree |= {"canvas_width": canvas[0], "canvas_height": canvas[1]}
    (tmp_path / "poses").mkdir(exist_ok=True)
    (tmp_path / "poses" / f"{Path(name).stem}.json").write_text(json.dumps(tree))


@pytest.mark.parametrize("of", ["stored", "upright", "unknown"])
def test_keypoints_are_turned_where_the_canvas_has_the_stored_shape(
    tmp_path: Path, of: str
) -> None:
    truth = pictures(tmp_path / "images", WIDE)
    for name, (orientation, face) in truth.items():
        size = WIDE if of == "stored" else upright(WIDE, orientation)
        box = FACE if of == "stored" else face
        openpose(tmp_path, name, box, None if of == "unknown" else size)
    import_openpose(tmp_path / "poses", tmp_path / "images", tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out/metadata.jsonl").read_text().splitlines()]
    for row in rows:
        x, y, w, h = truth[row["file_name"]][1]
        (found,) = row["faces"]
        # The margin is of the longer side, on all sides: only the centre is exact.
        centre = (found[0] + found[2] / 2, found[1] + found[3] / 2)
        np.testing.assert_allclose(centre, (x + w / 2, y + h / 2), atol=1)


def test_yolo_shares_are_of_the_upright_image(tmp_path: Path, suffix: str) -> None:
    truth = pictures(tmp_path / "images", WIDE, suffix)
    (tmp_path / "labels").mkdir()
    for name, (orientation, (x, y, w, h)) in truth.items():
        width, height = upright(WIDE, orientation)
        line = f"0 {(x + w / 2) / width} {(y + h / 2) / height} {w / width} {h / height}\n"
        (tmp_path / "labels" / f"{Path(name).stem}.txt").write_text(line)
    import_yolo(tmp_path / "labels", tmp_path / "images", tmp_path / "out", [0])
    check(tmp_path / "out", truth)


@pytest.mark.parametrize("of", ["stored", "upright", "EXIF"])
def test_masks_are_turned_where_they_have_the_stored_size(tmp_path: Path, of: str) -> None:
    truth = pictures(tmp_path / "images", WIDE)
    (tmp_path / "masks").mkdir()
    for name, (orientation, face) in truth.items():
        mask = np.zeros(WIDE[::-1], np.uint8)
        x, y, w, h = FACE
        if of == "upright":
            mask, (x, y, w, h) = np.zeros(upright(WIDE, orientation)[::-1], np.uint8), face
        mask[y : y + h, x : x + w] = 255
        exif = Image.Exif()
        if of == "EXIF":  # the mask says of itself how it is turned
            exif[0x0112] = orientation
        Image.fromarray(mask).save(tmp_path / "masks" / name, exif=exif)
    import_masks(tmp_path / "images", tmp_path / "out", face_masks=tmp_path / "masks")
    for name, (_, face) in truth.items():
        mask = np.asarray(open_mask(tmp_path / "out" / "masks" / "face" / name))
        ys, xs = np.nonzero(mask > 127)
        found = (int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1)
        assert found == face, name


def test_annotate_and_its_export_are_of_the_upright_image(tmp_path: Path, suffix: str) -> None:
    root = tmp_path / "images"
    truth = pictures(root, WIDE, suffix)
    choice = DetectorChoice("square_detector:SquareDetector", {"threshold": 0.5})
    annotate(root, choice, jobs=1, progress=False)
    check(root, truth)
    export_coco(root, tmp_path / "coco.json")
    tree = json.loads((tmp_path / "coco.json").read_text())
    boxes = {found["image_id"]: found["bbox"] for found in tree["annotations"]}
    for image in tree["images"]:
        orientation, face = truth[image["file_name"]]
        assert (image["width"], image["height"]) == upright(WIDE, orientation)
        np.testing.assert_allclose(boxes[image["id"]], face, atol=2)
    assert "upright" in tree["info"]["description"]
