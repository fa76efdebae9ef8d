"""Keypoints, YOLO labels and mask images in, COCO's JSON out: what is taken, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from fairhuman.cli import main
from fairhuman.common.errors import DataError, OutputError
from fairhuman.common.images import open_mask
from fairhuman.curation.export_coco import export_coco, run_lengths
from fairhuman.curation.importers import common
from fairhuman.curation.importers.masks import import_masks
from fairhuman.curation.importers.openpose import import_openpose
from fairhuman.curation.importers.yolo import import_yolo
from fairhuman.data.records import Reading, load_records

SIZE = (200, 100)
FACE, LEFT, RIGHT = (20.0, 10.0, 40.0, 30.0), (80.0, 50.0, 10.0, 20.0), (150.0, 60.0, 20.0, 10.0)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.jpg", "sub/b ü.png"):
        Image.new("RGB", SIZE).save(folder / name)
    (folder / "a.txt").write_text("a caption")
    return folder


def lines(root: Path) -> dict[str, dict[str, Any]]:
    text = (root / "metadata.jsonl").read_text(encoding="utf-8")
    return {row["file_name"]: row for row in map(json.loads, text.splitlines())}


def cloud(box: tuple[float, ...], count: int) -> list[list[float]]:
    """Return keypoints within a box, with some in its corners."""
    x, y, width, height = box
    shares = np.random.default_rng(0).random((count, 2))
    shares[:4] = [(0, 0), (1, 0), (0, 1), (1, 1)]
    return [[x + float(u) * width, y + float(v) * height] for u, v in shares]


def triples(points: list[list[float]], confidence: float = 1.0) -> list[float]:
    return [value for point in points for value in (*point, confidence)]


def openpose(**changes: Any) -> dict[str, Any]:
    person = {
        "pose_keypoints_2d": triples(cloud((0, 0, 100, 100), 25)),
        "face_keypoints_2d": triples(cloud(FACE, 70)),
        "hand_left_keypoints_2d": triples(cloud(LEFT, 21)),
        "hand_right_keypoints_2d": triples(cloud(RIGHT, 21)),
    }
    return person | changes


def wholebody() -> list[list[float]]:
    parts = [cloud((0, 0, 1, 1), 23), cloud(FACE, 68), cloud(LEFT, 21), cloud(RIGHT, 21)]
    return [point for part in parts for point in part]


def shares(tree: dict[str, Any]) -> dict[str, Any]:
    scale = np.tile([1 / SIZE[0], 1 / SIZE[1], 1.0], 70)
    return {k: (np.array(v) * scale[: len(v)]).tolist() for k, v in tree.items()}


def doubled(tree: dict[str, Any]) -> dict[str, Any]:
    return {k: (np.array(v) * np.tile([2, 2, 1.0], len(v) // 3)).tolist() for k, v in tree.items()}


FORMS: dict[str, Callable[[], Any]] = {
    "OpenPose": lambda: {"people": [openpose()]},
    "shares of the image": lambda: {"people": [shares(openpose())]},
    "ComfyUI": lambda: [
        {"people": [doubled(openpose())], "canvas_width": 400, "canvas_height": 200}
    ],
    "133 keypoints, flat": lambda: {"people": [{"keypoints": triples(wholebody())}]},
    "MMPose": lambda: {
        "instance_info": [{"keypoints": wholebody(), "keypoint_scores": [0.9] * 133}]
    },
    "a list of people": lambda: [
        {"keypoints": wholebody(), "keypoint_scores": [0.9] * 133},
        {"keypoints": wholebody(), "keypoint_scores": [0.1] * 133},
    ],
}


@pytest.mark.parametrize("form", FORMS)
def test_keypoints_become_boxes_around_them(images: Path, tmp_path: Path, form: str) -> None:
    (tmp_path / "a_keypoints.json").write_text(json.dumps(FORMS[form]()))
    done = import_openpose(tmp_path, images, tmp_path / "out")
    assert (done.images, done.faces, done.hands, done.unannotated) == (1, 1, 2, 1)
    row = lines(tmp_path / "out")["a.jpg"]
    assert row["text"] == "a caption"
    for found, box in zip((*row["faces"], *row["hands"]), (FACE, LEFT, RIGHT), strict=True):
        grow = 0.1 * max(box[2:])
        expected = (box[0] - grow, box[1] - grow, box[2] + 2 * grow, box[3] + 2 * grow)
        np.testing.assert_allclose(found, expected, atol=0.02)
    assert len(load_records(tmp_path / "out", Reading(("face", "hand")))[0]) == 1


def test_unsure_keypoints_make_no_box_and_hands_nobody_looked_for_are_not_annotated(
    images: Path, tmp_path: Path
) -> None:
    unsure = openpose(
        face_keypoints_2d=triples(cloud(FACE, 70), 0.1),
        hand_left_keypoints_2d=[],
        hand_right_keypoints_2d=[],
    )
    (tmp_path / "a.json").write_text(json.dumps({"people": [unsure]}))
    import_openpose(tmp_path, images, tmp_path / "out")
    row = lines(tmp_path / "out")["a.jpg"]
    assert row["faces"] == []
    assert "hands" not in row


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "1 image"),
        ("{}", "holds no keypoints of OpenPose"),
        ('{"people": [{"keypoints": [1, 2, 3]}]}', "a person has 1 keypoints"),
        ('{"people": [{}]}', "none of OpenPose's keys"),
        ('{"people": [{"face_keypoints_2d": [1, 2]}]}', "holds no keypoints"),
    ],
)
def test_a_keypoint_file_that_is_none_is_named(
    images: Path, tmp_path: Path, text: str, expected: str
) -> None:
    (tmp_path / "a.json").write_text(text)
    if text == "[]":  # nobody in the picture
        assert import_openpose(tmp_path, images, tmp_path / "out").images == 1
        return
    with pytest.raises(DataError) as caught:
        import_openpose(tmp_path, images, tmp_path / "out")
    assert expected in str(caught.value)
    assert "a.json" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_yolo_boxes_and_outlines_are_taken_by_class(images: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    (labels / "sub").mkdir(parents=True)
    (labels / "sub" / "b ü.txt").write_text(
        "0 0.2 0.25 0.2 0.3\n1 0.5 0.5 0.1 0.2 0.93\n\n2 0.1 0.1 0.2 0.1 0.2 0.4\n"
        "1 0.99 0.5 0.1 0.2\n7 0.5 0.5 0.1 0.1\n"
    )
    words = ["import", "yolo", "--labels", str(labels), "--images", str(images)]
    words += ["--face-class", "0", "--hand-class", "1", "--hand-class", "2"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    found = lines(tmp_path / "out")
    np.testing.assert_allclose(found["sub/b ü.png"]["faces"], [[20, 10, 40, 30]])
    hands = [[90, 40, 20, 20], [20, 10, 20, 30], [188, 40, 12, 20]]
    np.testing.assert_allclose(found["sub/b ü.png"]["hands"], hands)
    assert (found["a.jpg"]["faces"], found["a.jpg"]["text"]) == ([], "a caption")


@pytest.mark.parametrize(
    "line", ["0 1 2", "0 0.1 0.2 0.3", "zero 0.1 0.1 0.1 0.1", "0 nan 0 0 0", "0 20 10 5 5"]
)
def test_a_wrong_yolo_line_is_named(images: Path, tmp_path: Path, line: str) -> None:
    (tmp_path / "a.txt").write_text(f"0 0.5 0.5 0.1 0.1\n{line}\n")
    with pytest.raises(DataError, match=r"a\.txt:2: is not `class x y width height`"):
        import_yolo(tmp_path, images, tmp_path / "out", [0])
    assert not (tmp_path / "out").exists()


def test_yolo_needs_classes_and_labels(images: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="give --face-class, --hand-class or both"):
        import_yolo(tmp_path, images, tmp_path / "out")
    with pytest.raises(DataError, match="cannot be both"):
        import_yolo(tmp_path, images, tmp_path / "out", [0], [0])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no STEM"):
        import_yolo(tmp_path / "empty", images, tmp_path / "out", [0])
    Image.new("RGB", (9, 9)).save(images / "a.png")
    with pytest.raises(DataError, match=r"a\.jpg and a\.png share a stem"):
        import_yolo(tmp_path, images, tmp_path / "out", [0])


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    folder = tmp_path / "hands"
    folder.mkdir()
    mask = Image.new("L", SIZE)
    ImageDraw.Draw(mask).rectangle((80, 50, 89, 69), fill=255)
    mask.convert("RGB").save(folder / "a.png")
    return folder


def test_masks_are_taken_by_name_and_as_grey(images: Path, masks: Path, tmp_path: Path) -> None:
    found = import_masks(images, tmp_path / "out", hand_masks=masks)
    assert (found.done.images, found.masks, found.bright) == (1, {"hand": 1}, [])
    row = lines(tmp_path / "out")["a.jpg"]
    assert row == {"file_name": "a.jpg", "text": "a caption", "hand_mask": "masks/hand/a.png"}
    mask = np.asarray(open_mask(tmp_path / "out" / row["hand_mask"]))
    assert mask.sum() == 10 * 20 * 255
    assert len(load_records(tmp_path / "out", Reading(("hand",)))[0]) == 1


def test_black_regions_are_noticed_and_can_be_turned(
    images: Path, masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.eval(open_mask(masks / "a.png"), lambda value: 255 - value).save(masks / "a.png")
    words = ["import", "masks", "--images", str(images), "--hand-masks", str(masks)]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    assert "1 masks are mostly white" in capsys.readouterr().out
    assert main([*words, "--out", str(tmp_path / "turned"), "--invert"]) == 0
    assert "mostly white" not in capsys.readouterr().out
    mask = np.asarray(open_mask(tmp_path / "turned" / "masks" / "hand" / "a.png"))
    assert mask.sum() == 10 * 20 * 255


def test_masks_that_do_not_fit_are_named(images: Path, masks: Path, tmp_path: Path) -> None:
    Image.new("L", (10, 12)).save(masks / "a.png")
    with pytest.raises(DataError, match=r"is 10 x 12 px, its image .* is 200 x 100"):
        import_masks(images, tmp_path / "out", hand_masks=masks)
    (masks / "a.png").write_text("no image")
    with pytest.raises(DataError, match="cannot be read as an image"):
        import_masks(images, tmp_path / "out", hand_masks=masks)
    (masks / "a.png").rename(masks / "other.png")
    with pytest.raises(DataError, match="no image has the name of a mask"):
        import_masks(images, tmp_path / "out", hand_masks=masks)
    with pytest.raises(DataError, match="give --face-masks"):
        import_masks(images, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_import_that_cannot_write_leaves_nothing(
    images: Path, masks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(root: Path, rows: Any) -> None:
        raise OSError(28, "No space left on device", str(root))

    monkeypatch.setattr(common, "write_metadata", full)
    with pytest.raises(OutputError, match="No space left"):
        import_masks(images, tmp_path / "deep" / "out", hand_masks=masks)
    assert not (tmp_path / "deep").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.jpg").write_text("mine")
    with pytest.raises(OutputError, match="already exists"):
        import_masks(images, tmp_path / "out", hand_masks=masks)
    assert (tmp_path / "out" / "a.jpg").read_text() == "mine"


def test_an_export_holds_what_was_imported(images: Path, masks: Path, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"people": [openpose()]}))
    root = tmp_path / "out"
    import_openpose(tmp_path, images, root)
    assert main(["export-annotations", str(root), "--out", str(tmp_path / "coco.json")]) == 0
    tree = json.loads((tmp_path / "coco.json").read_text(encoding="utf-8"))
    assert [(i["file_name"], i["width"], i["height"]) for i in tree["images"]] == [("a.jpg", *SIZE)]
    names = {category["id"]: category["name"] for category in tree["categories"]}
    row = lines(root)["a.jpg"]
    for region in ("face", "hand"):
        found = [a["bbox"] for a in tree["annotations"] if names[a["category_id"]] == region]
        assert found == row[f"{region}s"]


def test_a_mask_is_exported_as_run_lengths(images: Path, masks: Path, tmp_path: Path) -> None:
    import_masks(images, tmp_path / "out", hand_masks=masks)
    done = export_coco(tmp_path / "out", tmp_path / "coco.json")
    assert (done.images, done.annotations) == (1, 1)
    tree = json.loads((tmp_path / "coco.json").read_text())
    assert tree["images"][0]["not_annotated"] == ["face"]
    found = tree["annotations"][0]
    assert (found["bbox"], found["area"], found["iscrowd"]) == ([80, 50, 10, 20], 200, 1)
    height, width = found["segmentation"]["size"]
    values = np.repeat(
        np.arange(len(found["segmentation"]["counts"])) % 2, found["segmentation"]["counts"]
    )
    mask = np.asarray(open_mask(masks / "a.png")) > 127
    assert (mask == values.reshape(width, height).T).all()
    assert run_lengths(np.ones((2, 3), dtype=bool)) == [0, 6]
    assert run_lengths(np.zeros((2, 3), dtype=bool)) == [6]


def test_an_export_of_a_broken_data_set_writes_nothing(images: Path, tmp_path: Path) -> None:
    row = {"file_name": "a.jpg", "text": "", "faces": [[0, 0, 900, 9]]}
    (images / "metadata.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match="is outside the image"):
        export_coco(images, tmp_path / "coco.json")
    with pytest.raises(DataError, match="holds no metadata"):
        export_coco(tmp_path, tmp_path / "coco.json")
    assert not (tmp_path / "coco.json").exists()
