"""COCO-WholeBody: what is taken, what is left out, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fairhuman.cli import main
from fairhuman.common.errors import DataError
from fairhuman.curation.importers.coco_wholebody import import_coco_wholebody
from fairhuman.data.records import Reading, load_records


def person(image: int, **boxes: Any) -> dict[str, Any]:
    tree: dict[str, Any] = {"image_id": image, "iscrowd": 0}
    for part in ("face", "lefthand", "righthand"):
        tree[f"{part}_box"] = boxes.get(part, [0.0, 0.0, 0.0, 0.0])
        tree[f"{part}_valid"] = part in boxes
    return tree | {key: value for key, value in boxes.items() if key.endswith(("valid", "crowd"))}


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Annotations of three images, of which two are there."""
    (tmp_path / "images").mkdir()
    for name in ("1.jpg", "2.jpg"):
        Image.new("RGB", (100, 50)).save(tmp_path / "images" / name)
    tree = {
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in (1, 2, 3)],
        "annotations": [
            person(1, face=[10, 10, 20, 20], lefthand=[90, 40, 30, 30]),
            person(1, face=[1, 1, 5, 5], face_valid=False),
            person(1, face=[30, 1, 5, 5], iscrowd=1),
            person(2, righthand=[-5, 3, 10.123456, 4]),
        ],
    }
    (tmp_path / "annotations.json").write_text(json.dumps(tree))
    captions = [{"file_name": "1.jpg", "text": "one"}, {"file_name": "2.jpg", "text": "zwei ü"}]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, captions)))
    return tmp_path


def lines(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "metadata.jsonl").read_text().splitlines()]


def test_valid_boxes_are_taken_cut_to_the_image_and_crowds_left_out(coco: Path) -> None:
    done = import_coco_wholebody(
        coco / "annotations.json", coco / "images", coco / "out", coco / "captions.jsonl"
    )
    assert (done.images, done.faces, done.hands, done.missing) == (2, 1, 2, 1)
    assert lines(coco / "out") == [
        {
            "file_name": "1.jpg",
            "text": "one",
            "faces": [[10.0, 10.0, 20.0, 20.0]],
            "hands": [[90.0, 40.0, 10.0, 10.0]],
        },
        {"file_name": "2.jpg", "text": "zwei ü", "faces": [], "hands": [[0.0, 3.0, 5.12, 4.0]]},
    ]
    records, left_out = load_records(coco / "out", Reading(("face", "hand")))
    assert len(records) == 2
    assert not left_out


def test_coco_s_own_captions_file_works(coco: Path) -> None:
    tree = {"annotations": [{"image_id": i, "caption": f" n{i} "} for i in (1, 2, 1, 77)]}
    (coco / "captions.json").write_text(json.dumps(tree))
    import_coco_wholebody(
        coco / "annotations.json", coco / "images", coco / "out", coco / "captions.json"
    )
    assert [row["text"] for row in lines(coco / "out")] == ["n1", "n2"]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("captions.jsonl", '{"file_name": "1.jpg", "text": "one"}', "has no caption for 2.jpg"),
        ("captions.jsonl", "{}\n{}", "captions.jsonl:1: is not a JSON object with file_name"),
        ("annotations.json", "[]", "is not COCO-WholeBody's format"),
        ("annotations.json", "{", "cannot be read as JSON"),
        ("annotations.json", '{"images": [{}], "annotations": []}', "format: images[0] lacks 'id'"),
        (
            "annotations.json",
            '{"images": [{"id": 1, "file_name": "../1.jpg"}], "annotations": []}',
            "leads out of the folder",
        ),
        ("images/1.jpg", "no image", "1.jpg: cannot be read as an image"),
    ],
)
def test_a_mistake_is_named_and_nothing_is_written(
    coco: Path, name: str, text: str, expected: str
) -> None:
    (coco / name).write_text(text)
    with pytest.raises(DataError) as caught:
        import_coco_wholebody(
            coco / "annotations.json", coco / "images", coco / "out", coco / "captions.jsonl"
        )
    assert expected in str(caught.value)
    assert not (coco / "out").exists()


def test_a_data_set_that_is_there_is_not_replaced(
    coco: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["import", "coco-wholebody", "--annotations", str(coco / "annotations.json")]
    words += ["--images", str(coco / "images"), "--out", str(coco / "out")]
    assert main(words) == 0
    before = (coco / "out" / "metadata.jsonl").read_bytes()
    assert main(words) == 2
    assert "holds a data set already" in capsys.readouterr().err
    assert (coco / "out" / "metadata.jsonl").read_bytes() == before


def test_the_published_boxes_of_the_photographs(wholebody: Path, tmp_path: Path) -> None:
    done = import_coco_wholebody(
        wholebody / "annotations.json", wholebody, tmp_path / "out", wholebody / "captions.jsonl"
    )
    assert (done.images, done.faces, done.hands, done.missing) == (4, 4, 10, 0)
    by_name = {row["file_name"]: row for row in lines(tmp_path / "out")}
    assert by_name["000000196141.jpg"]["faces"] == []
    assert len(by_name["000000196141.jpg"]["hands"]) == 3
