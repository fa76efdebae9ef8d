"""Files outside data.root are read only where data.outside allows it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from fairhuman.common.errors import DataError
from fairhuman.config import Data
from fairhuman.curation.inspection.inspect import View, inspect
from fairhuman.data.records import Reading, load_records


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data set at the end of a link, next to a picture that is not of it."""
    folder = tmp_path / "really" / "ds"
    (folder / "sub").mkdir(parents=True)
    Image.new("L", (32, 32), 0).save(tmp_path / "really" / "out.png")
    Image.new("L", (32, 32), 0).save(folder / "in.png")
    Image.new("L", (32, 32), 0).save(folder / "sub" / "mask.png")
    (folder / "linked.png").symlink_to(tmp_path / "really" / "out.png")
    (folder / "up").symlink_to(tmp_path / "really")
    (folder / "own.png").symlink_to("sub/../in.png")
    (tmp_path / "really" / "ds2").mkdir()
    Image.new("L", (32, 32), 0).save(tmp_path / "really" / "ds2" / "a.png")
    (tmp_path / "ds").symlink_to(folder)
    return tmp_path / "ds"


def names(root: Path) -> dict[str, str]:
    return {
        "above": "../really/out.png",
        "neighbour of a similar name": "../ds2/a.png",
        "absolute": str(root.parent / "really" / "out.png"),
        "a link": "linked.png",
        "a linked folder": "up/out.png",
    }


@pytest.mark.parametrize("key", ["file_name", "face_mask", "conditioning_image"])
@pytest.mark.parametrize("way", ["above", "absolute", "a link", "a linked folder"])
def test_a_file_outside_is_refused_unless_allowed(root: Path, key: str, way: str) -> None:
    name = names(root)[way]
    row = {"file_name": "in.png", "text": "x", "hands": [], "faces": []}
    row |= {"conditioning_image": "in.png", key: name}
    (root / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=r"metadata.jsonl:1: .*data.outside=allow"):
        load_records(root, Reading(("face", "hand"), conditioned=True))
    if way == "above":
        return  # no such file from here
    load_records(root, Reading(("face", "hand"), conditioned=True, outside="allow"))
    if key == "conditioning_image":
        return
    assert "unusable" in inspect(root, View(Data(root=str(root), resolution=64))).by_kind()
    allowed = View(Data(root=str(root), resolution=64, outside="allow"))
    found = inspect(root, allowed).by_kind().get("unusable", [])
    assert not any(sample.name == row["file_name"] for sample in found)


def test_a_folder_that_is_a_link_and_links_within_it_are_inside(root: Path) -> None:
    rows = [
        {"file_name": name, "text": "x", "hands": [], "face_mask": "sub/mask.png"}
        for name in ("in.png", "own.png", "sub/../in.png", str(root / "in.png"))
    ]
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert len(load_records(root, Reading(("face", "hand")))[0]) == 4
