"""Caption files of every name and encoding are read, or named with the image that lacks one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fairhuman.curation.annotation.annotate import Annotated, annotate
from fairhuman.curation.annotation.detector import DetectorChoice


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (40, 30), "white").save(tmp_path / "a.png")
    return tmp_path


def run(root: Path, force: bool = False) -> Annotated:
    choice = DetectorChoice("square_detector:SquareDetector", {"threshold": 0.5})
    return annotate(root, choice, force=force, jobs=1, progress=False)


def row(root: Path) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads((root / "metadata.jsonl").read_text(encoding="utf-8"))
    return tree


def edit(root: Path, **keys: Any) -> None:
    (root / "metadata.jsonl").write_text(json.dumps(row(root) | keys), encoding="utf-8")


def said(done: Annotated) -> str:
    return "\n".join(done.lines())


@pytest.mark.parametrize(
    "name", ["a.txt", "a.TXT", "a.Txt", "a.caption", "a.CAPTION", "a.png.txt", "a.png.caption"]
)
def test_every_name_is_read(folder: Path, name: str) -> None:
    (folder / name).write_text(" a légende\n of two lines\n", encoding="utf-8")
    assert name in said(run(folder))
    assert row(folder)["text"] == "a légende of two lines"


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le with BOM", "utf-16-be"]
)
def test_a_byte_order_mark_names_the_encoding(folder: Path, encoding: str) -> None:
    if encoding == "utf-16-be":
        content = b"\xfe\xff" + "légende".encode(encoding)
    else:
        content = "légende".encode(encoding.split()[0])
        content = (b"\xff\xfe" if encoding.endswith("BOM") else b"") + content
    (folder / "a.txt").write_bytes(content)
    run(folder)
    assert row(folder)["text"] == "légende"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("légende".encode("latin-1"), "is not UTF-8 (byte 1)"),
        ("légende".encode("utf-16-le"), "is not UTF-8"),
        ("legend".encode("utf-16-le"), "holds null bytes"),
        (b"\xff\xfea", "is not UTF-16"),
        (b"x" * (2 << 20), "larger than 1 MiB"),
        (b"0 0.5 0.5 0.1 0.2\n1 0.2 0.2 0.1 0.1\n", "holds YOLO's boxes"),
        (None, "is not a file"),
        ("dangling", "cannot be read: No such file"),
    ],
)
def test_what_cannot_be_read_is_named_and_the_image_kept(
    folder: Path, content: bytes | str | None, reason: str
) -> None:
    path = folder / "a.txt"
    if content is None:
        path.mkdir()
    elif isinstance(content, str):
        path.symlink_to(folder / "nowhere")
    else:
        path.write_bytes(content)
    done = run(folder)
    assert (row(folder)["text"], done.uncaptioned, done.left_out) == ("", 1, [])
    (note,) = done.notes
    assert str(note).startswith("a.png: kept without its caption: ")
    assert "a.txt" in str(note)
    assert reason in str(note)


def test_of_two_files_the_first_in_order_is_taken_and_the_other_named(folder: Path) -> None:
    (folder / "a.png.txt").write_text("third")
    (folder / "a.caption").write_text("second")
    (folder / "a.txt").write_text("first")
    done = run(folder)
    assert row(folder)["text"] == "first"
    assert "a.caption, a.png.txt says otherwise" in said(done)
    for name in ("a.png.txt", "a.caption"):
        (folder / name).write_text("first")
    assert not run(folder).notes
    (folder / "a.txt").write_text(" \n")  # without words, so no caption
    run(folder)
    assert row(folder)["caption_from"]["file"] == "a.caption"


def test_a_corrected_file_is_taken_over_and_nothing_else_changes(folder: Path) -> None:
    (folder / "a.txt").write_text("wrong")
    run(folder)
    before = row(folder)
    (folder / "a.txt").write_text("right")
    assert run(folder).captions == 1
    after = row(folder)
    assert after["text"] == "right"
    assert {k: v for k, v in after.items() if k not in ("text", "caption_from")} == {
        k: v for k, v in before.items() if k not in ("text", "caption_from")
    }
    content = (folder / "metadata.jsonl").read_bytes()
    assert run(folder).captions == 0
    assert (folder / "metadata.jsonl").read_bytes() == content


def test_a_human_s_text_is_kept_unless_forced(folder: Path) -> None:
    (folder / "a.txt").write_text("from the file")
    run(folder)
    edit(folder, text="by hand")
    (folder / "a.txt").write_text("corrected")
    done = run(folder)
    assert row(folder)["text"] == "by hand"
    assert "1 captions of metadata.jsonl were kept" in said(done)
    (folder / "a.txt").write_text("")
    run(folder, force=True)  # a file without words replaces nothing
    assert row(folder)["text"] == "by hand"
    (folder / "a.txt").write_text("corrected")
    run(folder, force=True)
    assert row(folder)["text"] == "corrected"


def test_a_caption_outlives_its_file(folder: Path) -> None:
    (folder / "a.txt").write_text("from the file")
    run(folder)
    (folder / "a.txt").write_bytes(b"\xe9")
    assert "kept with the caption that it had" in said(run(folder))
    (folder / "a.txt").unlink()
    assert run(folder).uncaptioned == 0
    assert row(folder)["text"] == "from the file"
