"""`fairhuman annotate`: what it writes, what it leaves alone, how it continues, what it refuses."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from square_detector import SquareDetector

from fairhuman.cli import main
from fairhuman.common.errors import DataError, UserError
from fairhuman.common.images import open_mask
from fairhuman.curation.annotation import quality
from fairhuman.curation.annotation.annotate import Annotated, annotate
from fairhuman.curation.annotation.detector import DetectorChoice, Region
from fairhuman.curation.annotation.journal import NAME
from fairhuman.curation.geometry import around, draw_outlines, hull, iou, merge, windows
from fairhuman.data.folder import find_images
from fairhuman.data.records import Reading, load_records
from fairhuman.data.regions import Box

FACE, HAND = (10, 12, 20, 24), (50, 40, 16, 12)


def picture(path: Path, width: int = 100, face: bool = True, hand: bool = True) -> None:
    image = Image.new("RGB", (width, 80), "white")
    pen = ImageDraw.Draw(image)
    for there, (x, y, w, h), colour in ((face, FACE, "red"), (hand, HAND, (0, 255, 0))):
        if there:
            pen.rectangle((x, y, x + w - 1, y + h - 1), fill=colour)
    image.save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "my pictures ü"
    (root / "more").mkdir(parents=True)
    picture(root / "a.png")
    picture(root / "more" / "b ö.png", width=101, hand=False)
    picture(root / "c.png", width=102, face=False, hand=False)
    (root / "a.txt").write_text("a red\nsquare\n", encoding="utf-8")
    return root


def run(root: Path, force: bool = False, jobs: int = 1, **settings: Any) -> Annotated:
    choice = DetectorChoice("square_detector:SquareDetector", {"threshold": 0.5, **settings})
    return annotate(root, choice, force=force, jobs=jobs, progress=False)


def rows(root: Path) -> dict[str, dict[str, Any]]:
    text = (root / "metadata.jsonl").read_text(encoding="utf-8")
    return {row["file_name"]: row for row in map(json.loads, text.splitlines())}


def change(root: Path, name: str, **keys: Any) -> None:
    changed = rows(root)
    changed[name] |= keys
    text = "\n".join(json.dumps(row) for row in changed.values())
    (root / "metadata.jsonl").write_text(text, encoding="utf-8")


def test_a_folder_becomes_a_data_set_and_a_second_run_changes_nothing(folder: Path) -> None:
    done = run(folder)
    assert (done.images, done.looked_at, done.faces, done.hands) == (3, 3, 2, 1)
    assert (done.masks, done.without, done.captions, done.uncaptioned) == (1, 1, 1, 2)
    found = rows(folder)
    assert found["a.png"]["faces"] == [list(map(float, FACE))]
    assert found["a.png"]["text"] == "a red square"
    assert found["more/b ö.png"]["hands"] == []
    assert found["a.png"]["detected"]["face"]["by"] == "squares 1, threshold 0.5"
    assert found["a.png"]["detected"]["hand"]["scores"] == [0.9]
    mask = np.asarray(open_mask(folder / found["a.png"]["hand_mask"]))
    assert mask.shape == (80, 100)
    assert mask[40:52, 50:66].min() == 255
    assert mask.sum() / 255 < 2 * 16 * 12
    records, left_out = load_records(folder, Reading(("face", "hand")))
    assert (len(records), left_out) == (3, [])
    before = (folder / "metadata.jsonl").read_bytes()
    again = run(folder)
    assert (again.looked_at, again.up_to_date, again.kept) == (0, 6, 0)
    assert (folder / "metadata.jsonl").read_bytes() == before
    assert not (folder / NAME).exists()


def test_captions_and_other_keys_stay(folder: Path) -> None:
    row = {
        "file_name": "a.png",
        "text": "mine",
        "source": {"url": "x"},
        "conditioning_image": "c.png",
    }
    (folder / "metadata.jsonl").write_text(json.dumps(row))
    run(folder)
    found = rows(folder)
    assert found["a.png"].items() >= row.items()
    assert set(found) == {"a.png", "more/b ö.png"}  # c.png is a control image


@pytest.mark.parametrize("edit", ["box", "delete the box", "mask file", "no mark"])
def test_what_a_human_edited_is_kept_unless_forced(folder: Path, edit: str) -> None:
    run(folder)
    row = rows(folder)["a.png"]
    if edit == "box":
        change(folder, "a.png", hands=[[1, 2, 3, 4]])
    elif edit == "delete the box":
        change(folder, "a.png", hands=[])
    elif edit == "mask file":
        Image.new("L", (100, 80), 255).save(folder / row["hand_mask"])
    else:
        change(folder, "a.png", detected={})
    edited = rows(folder)["a.png"]
    mask = (folder / row["hand_mask"]).read_bytes()
    done = run(folder, version="2")
    after = rows(folder)["a.png"]
    assert done.kept == (2 if edit == "no mark" else 1)
    assert (after["hands"], after["hand_mask"]) == (edited["hands"], edited["hand_mask"])
    assert (folder / row["hand_mask"]).read_bytes() == mask
    forced = run(folder, force=True)
    assert forced.kept == 0
    assert rows(folder)["a.png"] == row
    again = run(folder)
    assert again.up_to_date == 6


def test_numbers_written_otherwise_are_no_edit(folder: Path) -> None:
    run(folder)
    change(folder, "a.png", faces=[list(FACE)])  # 10 instead of 10.0
    assert run(folder).kept == 0


def test_a_region_that_a_human_annotated_does_not_keep_the_other_from_being_found(
    folder: Path,
) -> None:
    row = {"file_name": "a.png", "text": "", "faces": [[1, 1, 5, 5]]}
    (folder / "metadata.jsonl").write_text(json.dumps(row))
    done = run(folder)
    found = rows(folder)["a.png"]
    assert (found["faces"], len(found["hands"]), done.kept) == ([[1, 1, 5, 5]], 1, 1)


def test_a_detector_of_faces_leaves_hands_unannotated_and_is_done_after_one_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SquareDetector, "regions", ("face",))
    seen = str(tmp_path / "seen")
    assert run(folder, seen=seen).looked_at == 3
    assert all("faces" in row and "hands" not in row for row in rows(folder).values())
    assert run(folder, seen=seen).looked_at == 0
    assert len(Path(seen).read_text().split()) == 3


def test_another_version_finds_anew_and_old_masks_go(folder: Path) -> None:
    run(folder)
    old = rows(folder)["a.png"]["hand_mask"]
    picture(folder / "a.png", hand=False)
    assert run(folder, version="2").looked_at == 3
    assert "hand_mask" not in rows(folder)["a.png"]
    assert not (folder / old).exists()


def test_a_run_that_died_goes_on_where_it_was(folder: Path, tmp_path: Path) -> None:
    crash, seen = tmp_path / "crash", tmp_path / "seen"
    crash.write_text("101")  # the width of the last image
    words: dict[str, Any] = {"seen": str(seen), "crash": str(crash)}
    with pytest.raises(UserError, match="worker process died"):
        run(folder, jobs=2, **words)
    assert not (folder / "metadata.jsonl").exists()
    assert sorted(seen.read_text().split()) == ["100", "102"]
    with (folder / NAME).open("ab") as journal:
        journal.write(b'{"file_name": "more/b')  # cut off by the crash
    crash.unlink()
    done = run(folder, **words)
    assert sorted(seen.read_text().split()) == ["100", "101", "102"]
    assert (done.looked_at, done.faces, done.hands) == (3, 2, 1)
    assert len(rows(folder)) == 3


def test_an_image_that_was_replaced_meanwhile_is_looked_at_again(
    folder: Path, tmp_path: Path
) -> None:
    crash, seen = tmp_path / "crash", tmp_path / "seen"
    crash.write_text("101")
    words: dict[str, Any] = {"seen": str(seen), "crash": str(crash)}
    with pytest.raises(UserError):
        run(folder, jobs=2, **words)
    picture(folder / "a.png", width=140, face=False)
    crash.unlink()
    run(folder, **words)
    assert sorted(seen.read_text().split()) == ["100", "101", "102", "140"]
    assert rows(folder)["a.png"]["faces"] == []


def bad_images(root: Path) -> dict[str, str | None]:
    """Write odd images; return what is said of each (None: it is annotated)."""
    good = Image.open(root / "a.png").convert("RGB")
    (root / "text.jpg").write_text("no image")
    (root / "empty.jpg").write_bytes(b"")
    (root / "cut.png").write_bytes((root / "a.png").read_bytes()[:-60])
    deep = np.asarray(good.convert("L")).astype(np.uint16) * 257
    Image.fromarray(deep).save(root / "deep.png")
    Image.new("1", (20_000, 10_000)).save(root / "bomb.png")
    wide = Image.new("RGB", (20_000, 64), "white")
    wide.paste(good.crop((0, 0, 40, 40)))
    wide.save(root / "wide.png")
    good.convert("CMYK").save(root / "cmyk.tiff")
    good.quantize(16).save(root / "palette.png")
    good.convert("RGBA").save(root / "alpha.png")
    good.save(root / "film.gif", save_all=True, append_images=[Image.new("RGB", good.size)])
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    good.rotate(180).save(root / "turned.png", exif=exif)
    return {
        "text.jpg": "cannot be read as an image",
        "empty.jpg": "cannot be read as an image",
        "cut.png": "cannot be read as an image",
        "bomb.png": "has more than 89,478,485 pixels",
        **dict.fromkeys(
            (
                "wide.png",
                "cmyk.tiff",
                "palette.png",
                "alpha.png",
                "film.gif",
                "turned.png",
            )
        ),
    }


def test_bad_images_are_handled_or_named_and_left_out(folder: Path) -> None:
    expected = bad_images(folder)
    done = run(folder)
    said = {problem.place: problem.message for problem in done.left_out}
    found = rows(folder)
    for name, message in expected.items():
        if message is None:
            assert name not in said
            assert len(found[name]["faces"]) == 1, name
            np.testing.assert_allclose(found[name]["faces"], [FACE], atol=1)
        else:
            assert message in said[name]
            assert name not in found
    assert len(said) == 4
    assert found["deep.png"]["faces"] == []  # read, but grey: no face in the detector's colour
    assert not list(folder.rglob("*.partial"))
    records, _ = load_records(folder, Reading(("face", "hand")))
    assert len(records) == 10


def test_a_folder_that_cannot_be_read_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if Path(path) in refused:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    refused = [folder / "more"]
    names, problems = find_images(folder)
    assert names == ["a.png", "c.png"]
    assert "Permission denied" in str(problems[0])
    refused = [folder]
    with pytest.raises(DataError, match="cannot be read"):
        find_images(folder)


def test_a_mistake_in_the_folder_is_named_and_nothing_is_written(
    folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="no such folder"):
        run(tmp_path / "nowhere")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="holds no image"):
        run(tmp_path / "none")
    broken = '{"file_name": "a.png"}\n{"file_name": \n{"file_name": "a.png"}\n[]\n'
    (folder / "metadata.jsonl").write_text(broken)
    with pytest.raises(DataError) as caught:
        run(folder)
    for expected in (":2: is not JSON", ":3: 'a.png' is listed already", ":4: must be a JSON"):
        assert expected in str(caught.value)
    assert (folder / "metadata.jsonl").read_text() == broken
    assert not (folder / "masks").exists()


def test_the_command_counts_and_explains(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["annotate", str(folder), "--jobs", "2", "--detector"]
    assert main([*words, "square_detector:SquareDetector"]) == 0
    assert "3 images: 3 looked at, 2 faces and 1 hands found" in capsys.readouterr().out
    assert main([*words, "nothing"]) == 2
    assert "must be one of mediapipe, yolo" in capsys.readouterr().err
    assert main([*words, "mediapipe", "--trust-weights"]) == 2
    assert "need --detector yolo" in capsys.readouterr().err
    assert main([*words, "mediapipe", "--threshold", "1.5"]) == 2
    assert "--threshold 1.5" in capsys.readouterr().err


def test_without_mediapipe_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "mediapipe.python.solution_base", None)
    with pytest.raises(UserError, match=r"pip install 'mediapipe=="):
        DetectorChoice("mediapipe").make()


def test_yolo_weights_that_can_run_code_need_trust(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Numbers(list[Any]):
        def tolist(self) -> list[Any]:
            return list(self)

    class YOLO:
        def __init__(self, path: str, task: str) -> None:
            assert (path, task) == (str(weights), "detect")

        def predict(self, image: Image.Image, conf: float, verbose: bool) -> list[Any]:
            boxes = Numbers([[10.0, 20.0, 30.0, 50.0], [90.0, 70.0, 140.0, 90.0]])
            return [SimpleNamespace(boxes=SimpleNamespace(xyxy=boxes, conf=Numbers([0.8, 0.6])))]

    module = ModuleType("ultralytics")
    module.__dict__.update(YOLO=YOLO, __version__="8")
    monkeypatch.setitem(sys.modules, "ultralytics", module)
    weights = tmp_path / "hands.pt"

    def make(**settings: Any) -> Any:
        return DetectorChoice("yolo", settings).make()

    with pytest.raises(UserError, match="give --face-weights, --hand-weights or both"):
        make()
    with pytest.raises(UserError, match="no such file"):
        make(hand_weights=weights)
    weights.write_bytes(b"weights")
    with pytest.raises(UserError, match="--trust-weights"):
        make(hand_weights=weights)
    detector = make(hand_weights=weights, trust_weights=True)
    found = detector.detect(Image.new("RGB", (100, 80)))
    assert (list(found), detector.regions) == (["hand"], ("hand",))  # faces are not looked for
    assert [region.box for region in found["hand"]] == [(10, 20, 20, 30), (90, 70, 10, 10)]
    before = detector.version
    weights.write_bytes(b"others")
    assert make(hand_weights=weights, trust_weights=True).version != before
    monkeypatch.setitem(sys.modules, "ultralytics", None)
    with pytest.raises(UserError, match="pip install ultralytics"):
        make(hand_weights=weights, trust_weights=True)


coordinates = st.floats(0, 500, allow_nan=False)
pixels = st.integers(0, 500).map(float)
points = st.lists(st.tuples(pixels, pixels), min_size=3, max_size=30)
boxes = st.tuples(coordinates, coordinates, st.floats(1, 200), st.floats(1, 200))


@settings(max_examples=50, deadline=None)
@given(points)
def test_a_hull_covers_its_points_and_is_convex(cloud: list[tuple[float, float]]) -> None:
    corners = hull(cloud)
    assert hull(corners) == corners
    for i, (x, y) in enumerate(corners[1:]):
        x0, y0 = corners[i]
        turns = [(x - x0) * (v - y0) - (y - y0) * (u - x0) for u, v in cloud]
        assert len(corners) < 3 or min(turns) >= -1e-6
    mask = draw_outlines([corners], (520, 520))
    assert all(mask[round(y), round(x)] == 255 for x, y in cloud)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(boxes, st.floats(0, 1)), max_size=12))
def test_merging_keeps_the_surest_and_is_stable(found: list[tuple[Any, float]]) -> None:
    regions = [Region(box, score) for box, score in found]
    kept = merge(regions)
    assert merge(kept) == kept
    assert merge(reversed(regions)) == kept
    assert all(iou(a.box, b.box) < 0.3 for i, a in enumerate(kept) for b in kept[i + 1 :])
    if regions:
        assert kept[0].score == max(region.score for region in regions)


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (100, 100), (2000, 60)])
@pytest.mark.parametrize("share", [1.0, 0.5, 0.25])
def test_windows_cover_the_image_and_overlap(size: tuple[int, int], share: float) -> None:
    covered = np.zeros(size, dtype=int)
    for x, y, width, height in windows(size, share * min(size)):
        assert x >= 0 <= y
        assert x + width <= size[0] + 1e-6
        assert y + height <= size[1] + 1e-6
        covered[int(x) : int(np.ceil(x + width)), int(y) : int(np.ceil(y + height))] += 1
    assert covered.min() >= 1


def test_quality_counts_each_annotated_box_once() -> None:
    truth: dict[str, Sequence[Box]] = {
        "face": [(0.0, 0.0, 10.0, 10.0), (50.0, 0.0, 40.0, 40.0)],
        "hand": [],
    }
    twice = [Region((0.0, 0.0, 10.0, 10.0), 0.9), Region((0.0, 1.0, 10.0, 10.0), 0.8)]
    lines = list(quality.measure([(truth, {"face": twice, "hand": []})]))
    assert "| face | >= 0.5 | 0.50 (1/2) | 0.50 (1/2) | 1.00 (1/1) | - | 0.00 (0/1) | - |" in lines
    assert "| hand | >= 0.5 | - | - | - | - | - | - |" in lines
    assert around([(0.0, 0.0), (10.0, 4.0)], 0.1) == (-1.0, -1.0, 12.0, 6.0)


def test_mediapipe_finds_the_annotated_faces_of_the_photographs(
    wholebody: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mediapipe", reason="mediapipe is not installed: the extra annotate")
    words = ["--annotations", str(wholebody / "annotations.json"), "--images", str(wholebody)]
    assert quality.main(words) == 0
    out, err = capfd.readouterr()
    assert "| face | >= 0.5 | 1.00 (4/4) |" in out
    recall = next(line for line in out.splitlines() if line.startswith("| hand | >= 0.3"))
    assert float(recall.split("|")[3].split()[0]) >= 0.3
    assert err == ""


def test_mediapipe_gives_hands_their_outline(
    wholebody: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mediapipe", reason="mediapipe is not installed: the extra annotate")
    photograph = wholebody.parent / "people" / "000000000294.jpg"  # a cook shows both hands
    if not photograph.is_file():
        pytest.skip(f"the photograph is not here: {photograph}")
    (tmp_path / "a.jpg").write_bytes(photograph.read_bytes())
    assert main(["annotate", str(tmp_path)]) == 0
    out, err = capfd.readouterr()
    assert "1 looked at, 1 faces and 2 hands found, 1 masks" in out
    assert "W0000" not in err
    row = rows(tmp_path)["a.jpg"]
    mask = np.asarray(open_mask(tmp_path / row["hand_mask"])) > 0
    assert 0.01 < mask.mean() < 0.1
    inside = np.zeros_like(mask)
    for x, y, width, height in row["hands"]:
        inside[int(y) : int(y + height) + 1, int(x) : int(x + width) + 1] = True
    assert mask[inside].sum() > 0.95 * mask.sum()
