"""`fairhuman annotate --detector dwpose`: where it finds faces and hands, and what it refuses.

The models are tiny ones with the inputs and outputs of YOLOX and RTMW; see `small_poses`.
"""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from PIL import Image, ImageDraw
from small_poses import save_people, save_pose

from fairhuman.cli import main
from fairhuman.common.errors import UserError
from fairhuman.common.images import open_mask
from fairhuman.curation.annotation.detector import Detection, DetectorChoice
from fairhuman.curation.geometry import around, hull
from fairhuman.curation.keypoints import FACE, forehead, sure
from fairhuman.data.regions import Box

for package in ("onnx", "onnxruntime", "rtmlib"):
    pytest.importorskip(package, reason=f"{package} is not installed: the extra dwpose")

SIDE, POSE = (64, 64), (64, 48)
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def share(box: Box, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return a box of an image as the detector's input shows it: left, top, right, bottom."""
    scale = min(SIDE[0] / size[1], SIDE[1] / size[0])
    x, y, width, height = (value * scale for value in box)
    return (x, y, x + width, y + height)


def people(path: Path, size: tuple[int, int], *boxes: Box, nms: bool = False) -> Path:
    return save_people(path, SIDE, [(share(box, size), 0) for box in boxes], nms)


def drawn(size: tuple[int, int], blobs: list[tuple[Box, tuple[int, int, int]]]) -> Image.Image:
    image = Image.new("RGB", size, (120, 120, 120))
    pen = ImageDraw.Draw(image)
    for (x, y, width, height), colour in blobs:
        pen.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
    return image


def detector(folder: Path, person: Path, threshold: float = 0.5, **pose: Any) -> Any:
    keypoints = save_pose(folder / "pose.onnx", POSE, **pose)
    files = {"person_weights": person, "pose_weights": keypoints}
    return DetectorChoice("dwpose", {**files, "threshold": threshold}).make()


def boxes(found: Detection, region: str) -> list[Box]:
    return sorted(thing.box for thing in found[region])


def widened(box: Box, size: tuple[int, int]) -> list[float]:
    """Return what a hand's box must be: a tenth of its longer side more, cut to the image."""
    x, y, width, height = box
    grow = 0.1 * max(width, height)
    left, top = max(0.0, x - grow), max(0.0, y - grow)
    right, bottom = min(size[0], x + width + grow), min(size[1], y + height + grow)
    return [left, top, right - left, bottom - top]


@pytest.mark.parametrize("nms", [False, True])
@pytest.mark.parametrize("size", [(200, 300), (301, 97), (64, 64), (33, 41), (1500, 1001)])
def test_hands_are_where_they_are_drawn_whatever_the_size_of_the_image(
    tmp_path: Path, size: tuple[int, int], nms: bool
) -> None:
    """The oracle is what was drawn; a pixel of the pose's input is the tolerance."""
    width, height = size
    person: Box = (0.1 * width, 0.1 * height, 0.8 * width, 0.8 * height)
    side = min(width, height)
    face: Box = (int(0.4 * width), int(0.2 * height), int(0.2 * side), int(0.2 * side))
    left: Box = (int(0.15 * width), int(0.6 * height), int(0.2 * side), int(0.15 * side))
    right: Box = (int(0.7 * width), int(0.5 * height), int(0.15 * side), int(0.25 * side))
    image = drawn(size, [(face, RED), (left, GREEN), (right, BLUE)])
    found = detector(tmp_path, people(tmp_path / "p.onnx", size, person, nms=nms)).detect(image)
    # The crop is the person's box, a quarter wider, at 48 x 64.
    pixel = max(1.25 * person[2] / POSE[1], 1.25 * person[3] / POSE[0])
    assert len(found["face"]) == 1
    for box, truth in zip(boxes(found, "hand"), (left, right), strict=True):
        np.testing.assert_allclose(box, widened(truth, size), atol=2 * pixel + 1)
    for hand in found["hand"]:
        assert hand.score == pytest.approx(0.9, abs=0.01)
        assert hand.outline == tuple(hull(hand.outline))
        inner = around(hand.outline, 0.1)
        assert hand.box[0] >= inner[0] - 1e-6
        assert hand.box[2] <= inner[2] + 1e-6


def test_a_face_reaches_half_its_height_above_the_brows(tmp_path: Path) -> None:
    size, face = (200, 300), (60.0, 100.0, 60.0, 80.0)
    image = drawn(size, [(face, RED)])
    person = people(tmp_path / "p.onnx", size, (10, 10, 180, 280))
    region = detector(tmp_path, person).detect(image)["face"][0]
    points = np.array(region.outline)
    pixel = 1.25 * 280 / POSE[0]
    # Brows on the blob's upper edge, the chin on its lower one: a half of it more.
    assert points[:, 1].min() == pytest.approx(100 - 40, abs=2 * pixel)
    assert points[:, 1].max() == pytest.approx(180, abs=2 * pixel)


def test_a_forehead_is_added_along_the_face_even_if_it_lies_on_its_side() -> None:
    face = np.zeros((68, 3))
    face[:, 2] = 1.0
    face[17:27, :2] = [(100.0, y) for y in range(10)]  # the brows, at the right
    face[8, :2] = (40.0, 4.5)  # the chin, at the left
    np.testing.assert_allclose(forehead(face, 0.5)[:, 0], 130.0)
    np.testing.assert_allclose(forehead(face, 0.5)[:, 1], face[17:27, 1])
    for unsure in (slice(8, 9), slice(17, 27)):
        other = face.copy()
        other[unsure, 2] = 0.1
        assert len(forehead(other, 0.5)) == 0
    face[8, :2] = np.nan
    assert len(forehead(face, 0.5)) == 0


def test_several_people_each_have_their_own_and_no_cat_is_one(tmp_path: Path) -> None:
    size = (400, 200)
    first: list[Box] = [(20, 20, 30, 30), (20, 120, 30, 24), (90, 120, 24, 30)]
    second: list[Box] = [(x + 200, y, w, h) for x, y, w, h in first]
    image = drawn(size, [*zip(first, (RED, GREEN, BLUE), strict=True)])
    image.paste(image.crop((0, 0, 200, 200)), (200, 0))
    whole: list[Box] = [(10, 10, 130, 170), (210, 10, 130, 170)]
    # The first twice, as a detector's boxes overlap; and a cat where the second is.
    for extra, hands in (((14.0, 10.0, 126.0, 170.0), 4), (None, 2)):
        shown = [(share(whole[0], size), 0), (share(whole[1], size), 15 if extra is None else 0)]
        if extra:
            shown.append((share(extra, size), 0))
        person = save_people(tmp_path / "p.onnx", SIDE, shown)
        found = detector(tmp_path, person).detect(image)
        truths = [*first[1:], *second[1:]][:hands]
        assert len(found["face"]) == hands // 2
        for box, truth in zip(boxes(found, "hand"), truths, strict=True):
            np.testing.assert_allclose(box, widened(truth, size), atol=9)


def test_nobody_and_unsure_keypoints_are_nothing_found(tmp_path: Path) -> None:
    size = (200, 300)
    whole: Box = (10, 10, 180, 280)
    person = people(tmp_path / "p.onnx", size, whole)
    hand: Box = (40, 150, 40, 40)
    nothing: Detection = {"face": [], "hand": []}
    # Without red there is no person, though there is a hand.
    assert detector(tmp_path, person).detect(drawn(size, [(hand, GREEN)])) == nothing
    image = drawn(size, [((80, 40, 40, 40), RED), (hand, GREEN)])
    assert detector(tmp_path, person, confidence=0.45).detect(image) == nothing
    assert len(detector(tmp_path, person, 0.4, confidence=0.45).detect(image)["hand"]) == 1
    # SimCC's confidences may exceed 1, and ours may not.
    assert detector(tmp_path, person, confidence=3.0).detect(image)["hand"][0].score == 1.0
    # A strip of which no row is left at the detector's size.
    assert detector(tmp_path, person).detect(Image.new("RGB", (4000, 3), RED)) == nothing
    points = np.ones((21, 3))
    points[4:, 2] = 0.1
    assert sure(points, "hand", 0.5) is None
    assert FACE.stop - FACE.start == 68


def test_the_command_writes_boxes_masks_and_confidences_and_downloads_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> NoReturn:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    size = (200, 300)
    root = tmp_path / "photographs"
    root.mkdir()
    face, hand = (80.0, 40.0, 40.0, 40.0), (40.0, 150.0, 40.0, 40.0)
    drawn(size, [(face, RED), (hand, GREEN)]).save(root / "a.png")
    drawn(size, []).save(root / "b.png")
    person = people(tmp_path / "p.onnx", size, (10, 10, 180, 280))
    pose = save_pose(tmp_path / "pose.onnx", POSE)
    words = ["annotate", str(root), "--detector", "dwpose"]
    weights = ["--person-weights", str(person), "--pose-weights", str(pose)]
    assert main([*words, *weights]) == 0
    out = capsys.readouterr().out
    assert "2 images: 2 looked at, 1 faces and 1 hands found, 2 masks" in out
    assert "load " not in out
    rows = [json.loads(line) for line in (root / "metadata.jsonl").read_text().splitlines()]
    assert rows[1]["faces"] == rows[1]["hands"] == []
    assert rows[0]["detected"]["hand"]["scores"] == [pytest.approx(0.9, abs=0.01)]
    mask = np.asarray(open_mask(root / rows[0]["hand_mask"]))
    assert mask[150:190, 40:80].min() == 255
    assert mask.sum() / 255 < 1.8 * 40 * 40
    mask = np.asarray(open_mask(root / rows[0]["face_mask"]))
    assert mask[42:78, 82:118].min() == 255
    assert mask[:42].max() == 255  # the forehead
    before = (root / "metadata.jsonl").read_bytes()
    assert main([*words, *weights]) == 0
    assert "4 annotations were up to date" in capsys.readouterr().out
    assert (root / "metadata.jsonl").read_bytes() == before
    assert main([*words, *weights[:2]]) == 2
    assert "give --person-weights and --pose-weights" in capsys.readouterr().err
    assert main(["annotate", str(root), *weights]) == 2
    assert "--person-weights and --pose-weights need --detector dwpose" in capsys.readouterr().err


def test_other_weights_are_another_version(tmp_path: Path) -> None:
    person = people(tmp_path / "p.onnx", (64, 64), (1, 1, 60, 60))
    versions = {detector(tmp_path, person, confidence=value).version for value in (0.8, 0.9)}
    assert len(versions) == 2


def test_a_file_that_is_no_such_model_is_named_with_its_flag(tmp_path: Path) -> None:
    person = people(tmp_path / "p.onnx", (64, 64), (1, 1, 60, 60))
    pose = save_pose(tmp_path / "pose.onnx", POSE)
    body = save_pose(tmp_path / "body.onnx", POSE, count=17)
    (tmp_path / "cut.onnx").write_bytes(pose.read_bytes()[:200])
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "text.onnx").write_text("<html>not found</html>")

    def refused(first: Path, second: Path) -> str:
        choice = DetectorChoice("dwpose", {"person_weights": first, "pose_weights": second})
        with pytest.raises(UserError) as caught:
            choice.make()
        message = str(caught.value)
        assert "\n" not in message
        return message

    wanted = "its outputs must be [1, 133, 96] and [1, 133, 128]"
    assert wanted in refused(person, body)
    assert "and are [1, 17, 96] and [1, 17, 128]" in refused(person, body)
    assert f"--pose-weights {person}: is no whole-body pose model" in refused(person, person)
    assert f"--person-weights {pose}: is no YOLOX person detector" in refused(pose, person)
    for name in ("cut", "empty", "text"):
        bad = tmp_path / f"{name}.onnx"
        assert f"--pose-weights {bad}: is no ONNX model" in refused(person, bad)
        assert f"--person-weights {bad}: is no ONNX model" in refused(bad, pose)
    url = Path("https://example.com/pose.onnx")
    assert "there is no such file" in refused(person, url)
    assert "there is no such file" in refused(tmp_path, pose)


def test_without_its_packages_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    person = people(tmp_path / "p.onnx", (64, 64), (1, 1, 60, 60))
    monkeypatch.setitem(sys.modules, "rtmlib", None)
    with pytest.raises(UserError, match=r"--detector dwpose: .*pip install "):
        detector(tmp_path, person)
