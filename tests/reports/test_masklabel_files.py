"""OneTrainer's masks next to the photographs: never photographs, and never their own masks."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fairhuman.cli import main
from fairhuman.common.images import open_mask
from fairhuman.data.folder import find_images


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "ph"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.jpg", "sub/b.png", "c.png"):
        Image.new("RGB", (40, 30), "white").save(folder / name)
    mask = np.zeros((30, 40), np.uint8)
    mask[5:15, 10:20] = 255
    for name in ("a-masklabel.png", "sub/b-masklabel.png", "a-condlabel.png"):
        Image.fromarray(mask).save(folder / name)
    return folder


def rows(folder: Path) -> dict[str, dict[str, str]]:
    lines = map(json.loads, (folder / "metadata.jsonl").read_text().splitlines())
    return {row["file_name"]: row for row in lines}


def importing(photographs: Path, masks: Path, *more: str) -> int:
    words = ["import", "masks", "--images", str(photographs), "--face-masks", str(masks)]
    return main([*words, "--out", str(photographs.parent / "out"), *more])


def test_annotate_and_inspect_pass_them_over_and_annotate_says_so(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    detector = "square_detector:SquareDetector"
    assert main(["annotate", str(photographs), "--detector", detector, "--jobs", "1"]) == 0
    said = capsys.readouterr().out
    assert "3 images" in said
    assert "3 pictures named -masklabel or -condlabel" in said
    assert set(rows(photographs)) == {"a.jpg", "sub/b.png", "c.png"}
    assert main(["inspect", str(photographs), "--out", str(tmp_path / "page.html")]) == 0
    assert "3 images" in capsys.readouterr().out


def test_masks_in_the_images_own_folder_are_known_by_their_ending(photographs: Path) -> None:
    assert importing(photographs, photographs) == 0
    found = rows(photographs.parent / "out")
    assert set(found) == {"a.jpg", "sub/b.png"}
    for row in found.values():
        assert open_mask(photographs.parent / "out" / row["face_mask"]).histogram()[255] == 100


def test_masks_of_another_ending_need_it(
    photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photographs / "a-masklabel.png").rename(photographs / "a-MASK.png")
    (photographs / "sub" / "b-masklabel.png").unlink()
    assert importing(photographs, photographs) == 2
    assert "holds no NAME-masklabel.png" in capsys.readouterr().err
    assert importing(photographs, photographs, "--mask-suffix=") == 2
    assert "need a --mask-suffix" in capsys.readouterr().err
    assert importing(photographs, photographs, "--mask-suffix=-mask") == 0
    assert set(rows(photographs.parent / "out")) == {"a.jpg"}


@pytest.mark.parametrize("within", [True, False])
def test_masks_in_a_folder_of_their_own_may_have_the_ending(
    photographs: Path, tmp_path: Path, within: bool
) -> None:
    masks = photographs / "faces" if within else tmp_path / "faces"
    masks.mkdir()
    (photographs / "a-masklabel.png").rename(masks / "a-masklabel.png")
    (photographs / "a-condlabel.png").rename(masks / "c.png")
    assert importing(photographs, masks) == 0
    assert set(rows(tmp_path / "out")) == {"a.jpg", "c.png"}


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_photograph_is_never_its_own_mask(
    photographs: Path, tmp_path: Path, link: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(link)
    (tmp_path / "faces").mkdir()
    link(photographs / "c.png", tmp_path / "faces" / "c.png")
    assert importing(photographs, tmp_path / "faces") == 2
    error = capsys.readouterr().err
    assert "is the image itself, not its mask" in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_two_masks_for_one_image_are_refused(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "faces").mkdir()
    for name in ("a.png", "a-masklabel.png"):
        (tmp_path / "faces" / name).write_bytes((photographs / "a-masklabel.png").read_bytes())
    assert importing(photographs, tmp_path / "faces") == 2
    assert "are both masks of a" in capsys.readouterr().err
    assert importing(photographs, photographs, "--hand-masks", str(photographs)) == 2
    assert "every mask would be both" in capsys.readouterr().err


def test_a_photograph_whose_name_only_holds_the_word_is_one(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "my-masklabel-party.png")
    assert find_images(tmp_path)[0] == ["my-masklabel-party.png"]
