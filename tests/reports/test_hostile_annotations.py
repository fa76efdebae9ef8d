"""Hostile annotations: an import succeeds, or says in one line which file and place is wrong.

The annotations of each format are spoilt in one place after another by each of HOSTILE, as JSON or
as text; captions and pictures likewise. Whatever they hold, nothing is left half-written.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fairhuman.cli import main

HOSTILE = [
    "NaN", "-Infinity", "1e400", "1" + "0" * 400, "9" * 200, "-7", "1e300", "true", "null", '"1"',
    '"\\ud800"', '"\\u2028"', '"\\u0000"', '"../a.png"', '"/etc/passwd"', f'"{"x" * 5000}"',
    '"a\\nb"', "[null]", "{}", '{"a": 1, "a": 2}', "[" * 900 + "]" * 900, '{"a":' * 5000,
]  # fmt: skip
"""JSON, or what some programs write for it."""

BROKEN = [
    b"", b"\n", b"\0" * 40, b"\xff\xfe{}", b"\x89PNG\r\n\x1a\n", b"\xef\xbb\xbf", b"{",
    b"null", b"1", b'{"file_name": "a.png", "text"', b"nan nan nan nan nan",
    b"0 1e400 .5 .5 .5", b"0 .5 .5 .5", b"0 " + b"9" * 5000 + b" 1 1 1",
    b"9" * 5000 + b" .5 .5 .5 .5", b"0 .5 .5 -.5 .5", b"0 .5 .5 .5 .5\xe2\x80\xa8 0 x",
    b"-1 .5 .5 .5 .5", b"0 true .5 .5 .5", b"0 " + b".5 " * 10**5,
]  # fmt: skip
"""Whole files."""

POINTS = [float(i % 20) for i in range(3 * 21)]
PERSON = {
    "face_keypoints_2d": [10.0, 12.0, 0.9] * 70,
    "hand_left_keypoints_2d": POINTS,
    "hand_right_keypoints_2d": [],
}
TREES: dict[str, Any] = {
    "coco-wholebody": {
        "images": [
            {"id": 1, "file_name": "a.png", "width": 32, "height": 24},
            {"id": 2, "file_name": "b.png"},
            {"id": 3, "file_name": "not-there.png"},
        ],
        "annotations": [
            {
                "image_id": 1,
                "iscrowd": 0,
                "face_box": [1, 2, 10.5, 12],
                "face_valid": True,
                "lefthand_box": [20, 10, 5, 5],
                "lefthand_valid": 1,
                "righthand_box": [0, 0, 0, 0],
                "righthand_valid": False,
            },
        ],
    },
    "openpose": {"canvas_width": 32, "canvas_height": 24, "people": [PERSON]},
    "mmpose": {"instances": [{"keypoints": [[3.0, 4.0]] * 133, "keypoint_scores": [0.9] * 133}]},
    "coco-captions": {
        "annotations": [{"image_id": 1, "caption": "x"}, {"image_id": 2, "caption": ""}]
    },
    "captions": {"file_name": "a.png", "text": "a face"},
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures with a mask of each, annotations in every format."""
    root = tmp_path_factory.mktemp("hostile")
    for folder in ("images", "masks", "keypoints", "labels"):
        (root / folder).mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (32, 24), "gray").save(root / f"images/{name}.png")
        Image.new("L", (32, 24), "white").save(root / f"masks/{name}.png")
        (root / f"labels/{name}.txt").write_text("0 0.5 0.5 0.25 0.25\n")
    return root


def place(root: Path, kind: str) -> Path:
    """Return the file that holds the annotations of a kind."""
    return {
        "coco-wholebody": root / "coco-wholebody.json",
        "coco-captions": root / "coco-captions.json",
        "captions": root / "captions.jsonl",
        "yolo": root / "labels/a.txt",
        "masks": root / "masks/a.png",
        "images": root / "images/a.png",
    }.get(kind, root / "keypoints/a.json")


def command(root: Path, kind: str) -> list[str]:
    """Return the import that reads the file of a kind."""
    images = ["--images", str(root / "images"), "--out", str(root / "out")]
    if kind in ("coco-wholebody", "coco-captions"):
        captions = ["--captions", str(place(root, kind))] if kind == "coco-captions" else []
        annotations = str(place(root, "coco-wholebody"))
        return ["coco-wholebody", "--annotations", annotations, *images, *captions]
    if kind in ("openpose", "mmpose"):
        return ["openpose", "--keypoints", str(root / "keypoints"), *images]
    if kind in ("yolo", "captions"):
        captions = ["--captions", str(place(root, kind))] if kind == "captions" else []
        return ["yolo", "--labels", str(root / "labels"), "--face-class", "0", *images, *captions]
    return ["masks", "--face-masks", str(root / "masks"), *images]


def outcome(root: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Import; check that it succeeds or names its file in one line; return code and message."""
    out = root / "out"
    code = main(["import", *command(root, kind)])
    _, said = capsys.readouterr()
    if code == 0:
        lines = (out / "metadata.jsonl").read_bytes().splitlines()
        rows = [json.loads(line) for line in lines]
        assert rows
        assert all((out / row["file_name"]).is_file() for row in rows)
        assert not said
        shutil.rmtree(out)
        return code, said
    assert code == 2
    assert str(root) in said
    assert said.count("\n") == 1, said
    assert len(said) < 600, said
    assert "\u2028" not in said
    assert not out.exists()
    return code, said


def spoilt(tree: Any) -> Iterator[str]:
    """Yield a tree as JSON with each of its values replaced in turn, by every third of HOSTILE."""
    for number, path in enumerate(paths(tree)):
        text = json.dumps(put(tree, path, "@@"))
        for value in HOSTILE[number % 3 :: 3]:
            yield text.replace('"@@"', value)


def paths(node: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the path of every value in a tree; of lists, of the first."""
    yield path
    keys = list(node) if isinstance(node, dict) else [0] if isinstance(node, list) and node else []
    for key in keys:
        yield from paths(node[key], (*path, key))


def put(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return a copy of a tree with the value at a path replaced."""
    if not path:
        return value
    copy = list(tree) if isinstance(tree, list) else dict(tree)
    copy[path[0]] = put(tree[path[0]], path[1:], value)
    return copy


@pytest.mark.parametrize("kind", TREES)
def test_whatever_a_value_is_it_is_read_or_its_place_is_named(
    root: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, tree in TREES.items():  # what the others read
        if name != "mmpose":
            place(root, name).write_text(json.dumps(tree))
    codes = []
    for text in spoilt(TREES[kind]):
        place(root, kind).write_text(text + "\n")
        codes.append(outcome(root, kind, capsys)[0])
    place(root, kind).write_text(json.dumps(TREES[kind]))
    assert 2 in codes


@pytest.mark.parametrize("kind", [*TREES, "yolo", "masks", "images"])
def test_a_file_of_other_bytes_is_refused_by_its_name(
    root: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, tree in TREES.items():
        if name != "mmpose":
            place(root, name).write_text(json.dumps(tree))
    path = place(root, kind)
    whole = path.read_bytes()
    contents = [*BROKEN, whole[: len(whole) // 2]]
    for content in contents:
        path.write_bytes(content)
        code, _ = outcome(root, kind, capsys)
        assert code == 2 or kind == "yolo", content[:50]
    path.unlink()
    for target in (root / "nowhere", Path("/dev/null"), root):
        path.symlink_to(target)
        outcome(root, kind, capsys)
        path.unlink()
    path.write_bytes(whole)
    assert outcome(root, kind, capsys)[0] == (2 if kind == "captions" else 0)  # none for b.png


@pytest.mark.parametrize(
    "spoil",
    ["images out of the folder", "two of a name", "two ids", "no image", "out is a file", "long"],
)
def test_names_that_lead_nowhere_are_refused(
    root: Path, spoil: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = json.loads(json.dumps(TREES["coco-wholebody"]))
    first, second, _ = tree["images"]
    if spoil == "images out of the folder":
        first["file_name"] = "sub/../../a.png"
    elif spoil == "two of a name":
        second["file_name"] = "./a.png"
    elif spoil == "two ids":
        second["id"] = 1
    elif spoil == "no image":
        tree["images"] = tree["images"][2:]
    place(root, "coco-wholebody").write_text(json.dumps(tree))
    if spoil == "out is a file":
        (root / "out").write_text("mine")
    words = command(root, "coco-wholebody")
    if spoil == "long":
        words[words.index("--out") + 1] = str(root / ("x" * 300))
    assert main(["import", *words]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert str(root) in said
    if spoil == "out is a file":
        assert (root / "out").read_text() == "mine"
        (root / "out").unlink()
    assert not (root / "out").exists()


def test_annotations_of_images_that_are_not_listed_are_counted(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = json.loads(json.dumps(TREES["coco-wholebody"]))
    tree["annotations"] += [{**tree["annotations"][0], "image_id": 7}] * 2
    place(root, "coco-wholebody").write_text(json.dumps(tree))
    assert main(["import", *command(root, "coco-wholebody")]) == 0
    assert "2 annotations of images it does not list" in capsys.readouterr().out
    shutil.rmtree(root / "out")
