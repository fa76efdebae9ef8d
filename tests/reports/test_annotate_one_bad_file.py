"""`annotate`: a bad file stops only itself, and a replaced picture is looked at again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from square_detector import SquareDetector

from fairhuman.common.errors import DataError, OutputError
from fairhuman.common.lock import FolderLock
from fairhuman.curation.annotation.annotate import Annotated, annotate
from fairhuman.curation.annotation.detector import Detection, DetectorChoice, Region
from fairhuman.data.records import Reading, load_records

FORMATS = {
    ".avif": "AVIF",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".jp2": "JPEG2000",
    ".mpo": "MPO",
    ".ppm": "PPM",
    ".tga": "TGA",
    ".apng": "PNG",
}


def picture(path: Path, face: tuple[int, int, int, int] | None, size: tuple[int, int]) -> None:
    pixels = np.full((size[1], size[0], 3), 255, np.uint8)
    if face:
        x, y, w, h = face
        pixels[y : y + h, x : x + w] = (255, 0, 0)
    Image.fromarray(pixels).save(path, FORMATS.get(path.suffix))


def run(root: Path, jobs: int = 1, detector: str = "SquareDetector", **more: Any) -> Annotated:
    name = f"square_detector:{detector}" if "." not in detector else detector.replace(".", ":")
    choice = DetectorChoice(name, {"threshold": 0.5})
    return annotate(root, choice, jobs=jobs, progress=False, **more)


def rows(root: Path) -> dict[str, dict[str, Any]]:
    lines = map(json.loads, (root / "metadata.jsonl").read_text(encoding="utf-8").splitlines())
    return {row["file_name"]: row for row in lines}


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_bad_file_stops_only_itself(tmp_path: Path, jobs: int) -> None:
    long = "ü" * 120 + ".png"  # of 244 bytes: its mask's name must be cut
    for name in ("a.png", "z.png", long):
        picture(tmp_path / name, (10, 10, 8, 8), (40, 30))
    green = np.zeros((30, 40, 3), np.uint8)
    green[5:15, 5:15] = (0, 255, 0)  # a hand, which has a mask
    Image.fromarray(green).save(tmp_path / long)
    (tmp_path / "dangling.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "postscript.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (tmp_path / "b.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (tmp_path / "c.JXL").write_bytes(b"\xff\x0a")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "linked").symlink_to("/usr")
    done = run(tmp_path, jobs)
    found = rows(tmp_path)
    assert set(found) == {"a.png", "z.png", long}
    assert found["a.png"]["faces"] == [[10.0, 10.0, 8.0, 8.0]]
    assert (tmp_path / found[long]["hand_mask"]).is_file()
    bad = {"dangling.jpg", "loop.jpg", "pipe.jpg", "postscript.jpg", "b.heic", "c.JXL", "linked"}
    assert {problem.place for problem in done.left_out} == bad
    assert "b.heic: .heic pictures are not opened: convert it to .jpg or .png" in (
        str(problem) for problem in done.left_out
    )
    assert len(load_records(tmp_path, Reading(("face", "hand")))[0]) == 3


def test_a_file_that_is_deleted_meanwhile_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.png", "b.png", "c.png"):
        picture(tmp_path / name, (10, 10, 8, 8), (40, 30))
    detect = SquareDetector.detect

    def and_delete(self: SquareDetector, image: Image.Image) -> Detection:
        (tmp_path / "b.png").unlink(missing_ok=True)
        return detect(self, image)

    monkeypatch.setattr(SquareDetector, "detect", and_delete)
    done = run(tmp_path)
    assert set(rows(tmp_path)) == {"a.png", "c.png"}
    assert [str(problem) for problem in done.left_out] == ["b.png: there is no such file"]


@pytest.mark.parametrize(
    "box", [(float("nan"), 0, 5, 5), (0, 0, float("inf"), 5), (0, 0, 5), "nonsense", None]
)
def test_a_detector_that_fails_on_a_picture_stops_only_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, box: Any
) -> None:
    for name, width in (("a.png", 40), ("b.png", 41)):
        picture(tmp_path / name, (10, 10, 8, 8), (width, 30))
    detect = SquareDetector.detect

    def fail(self: SquareDetector, image: Image.Image) -> Detection:
        if image.width == 41:
            return {"face": [Region(box, 0.5)], "hand": []}
        return detect(self, image)

    monkeypatch.setattr(SquareDetector, "detect", fail)
    done = run(tmp_path)
    assert set(rows(tmp_path)) == {"a.png"}
    assert "b.png: the detector failed" in str(done.left_out[0])


def test_boxes_of_a_detector_are_cut_to_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(tmp_path / "a.png", None, (40, 30))
    boxes = [(-5, -5, 20, 20), (30, 20, 50, 50), (90, 90, 5, 5), (1, 1, 0.001, 5)]

    def detect(self: SquareDetector, image: Image.Image) -> Detection:
        faces = [Region(np.array(box, np.float32), np.float32(0.5)) for box in boxes]  # type: ignore[arg-type]
        return {"face": faces, "hand": []}

    monkeypatch.setattr(SquareDetector, "detect", detect)
    run(tmp_path)
    assert rows(tmp_path)["a.png"]["faces"] == [[0, 0, 15, 15], [30, 20, 10, 10]]


def test_every_format_that_the_trainer_takes_is_taken_and_counted(tmp_path: Path) -> None:
    for suffix in FORMATS:
        picture(tmp_path / f"a{suffix}", (8, 8, 16, 16), (64, 48))
    done = run(tmp_path)
    assert (done.looked_at, done.left_out) == (len(FORMATS), [])
    for row in rows(tmp_path).values():
        np.testing.assert_allclose(row["faces"], [(8, 8, 16, 16)], atol=3, err_msg=str(row))
    assert "1 .apng, 1 .avif" in "\n".join(done.lines())


def test_a_replaced_picture_is_looked_at_again_whatever_its_size_and_time(tmp_path: Path) -> None:
    path = tmp_path / "a.ppm"
    picture(path, (10, 10, 8, 8), (40, 30))
    picture(tmp_path / "b.ppm", (10, 10, 8, 8), (40, 30))
    before = path.stat()
    run(tmp_path)
    picture(path, (20, 5, 8, 8), (40, 30))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    done = run(tmp_path)
    assert (done.looked_at, done.up_to_date) == (1, 2)
    assert rows(tmp_path)["a.ppm"]["faces"] == [[20, 5, 8, 8]]
    os.utime(path)  # touched, but the same picture
    assert run(tmp_path).looked_at == 0


def test_boxes_of_a_replaced_picture_that_cannot_be_looked_at_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(tmp_path / "a.png", (10, 10, 8, 8), (40, 30))
    run(tmp_path)
    picture(tmp_path / "a.png", (20, 5, 8, 8), (40, 30))

    def fail(self: SquareDetector, image: Image.Image) -> Detection:
        raise ZeroDivisionError

    monkeypatch.setattr(SquareDetector, "detect", fail)
    done = run(tmp_path)
    assert "the detector failed: ZeroDivisionError" in str(done.left_out[0])
    assert "faces" not in rows(tmp_path)["a.png"]


def test_a_human_s_boxes_on_a_replaced_picture_are_kept_and_said(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", (10, 10, 8, 8), (40, 30))
    run(tmp_path)
    row = rows(tmp_path)["a.png"] | {"faces": [[9, 9, 9, 9]]}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    picture(tmp_path / "a.png", (20, 5, 8, 8), (40, 30))
    done = run(tmp_path)
    assert rows(tmp_path)["a.png"]["faces"] == [[9, 9, 9, 9]]
    assert done.replaced == ["a.png"]
    assert "were replaced since, such as a.png" in "\n".join(done.lines())


def test_links_out_of_the_folder_are_said(tmp_path: Path) -> None:
    picture(tmp_path / "far.png", (10, 10, 8, 8), (40, 30))
    root = tmp_path / "root"
    root.mkdir()
    (root / "a.png").symlink_to(tmp_path / "far.png")
    done = run(root)
    assert done.outside == ["a.png"]
    assert "data.outside=allow" in "\n".join(done.lines())


def test_two_annotations_of_one_folder_are_refused_and_a_dead_one_does_not_count(
    tmp_path: Path,
) -> None:
    picture(tmp_path / "a.png", (10, 10, 8, 8), (40, 30))
    code = (
        "import sys, time; from fairhuman.common.lock import FolderLock;"
        "lock = FolderLock(sys.argv[1], 'annotating'); print('held', flush=True); time.sleep(60)"
    )
    words = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match=f"process {other.pid} on .*annotating") as caught:
            run(tmp_path)
        assert len(str(caught.value).splitlines()) == 1
        assert not (tmp_path / "metadata.jsonl").exists()
        other.kill()
    assert run(tmp_path).looked_at == 1
    with FolderLock(tmp_path, "a test"):  # it was given back
        pass


def test_a_full_disk_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    green = np.zeros((30, 40, 3), np.uint8)
    green[5:15, 5:15] = (0, 255, 0)
    Image.fromarray(green).save(tmp_path / "a.png")

    def full(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:9])
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="No space left on device") as caught:
        run(tmp_path)
    assert len(str(caught.value).splitlines()) == 1
    monkeypatch.undo()
    assert not [path for path in (tmp_path / "masks").rglob("*") if path.is_file()]
    assert run(tmp_path).masks == 1


def test_half_a_character_is_named_before_any_image_is_looked_at(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", (10, 10, 8, 8), (40, 30))
    for key in ("text", "whatever"):
        line = json.dumps({"file_name": "a.png", key: "a \ud83d batter"})
        (tmp_path / "metadata.jsonl").write_text(line + "\n")
        with pytest.raises(DataError, match=r"metadata\.jsonl:1: holds .ud83d, half a character"):
            run(tmp_path)
        assert (tmp_path / "metadata.jsonl").read_text() == line + "\n"
        assert not (tmp_path / ".annotate.progress.jsonl").exists()
