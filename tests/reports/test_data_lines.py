"""Whatever stands in metadata.jsonl is read, or a problem with file and line; never a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fairhuman.cli import main
from fairhuman.common.errors import DataError
from fairhuman.curation.inspection.inspect import View, inspect
from fairhuman.data.records import Reading, load_records

GOOD: dict[str, Any] = {"file_name": "a.png", "text": "x", "faces": [], "hands": []}


def line(**fields: Any) -> bytes:
    return json.dumps(GOOD | {"file_name": "b.png"} | fields).encode()


def raw(faces: str) -> bytes:
    return b'{"file_name": "b.png", "text": "x", "hands": [], "faces": ' + faces.encode() + b"}"


BAD = {
    "NaN": (raw("[[5, NaN, 9, 9]]"), "not finite"),
    "infinity": (raw("[[5, 5, Infinity, 9]]"), "not finite"),
    "1e999": (raw("[[5, 5, 1e999, 9]]"), "not finite"),
    "400 digits": (raw("[[0, 0, 9, 1" + "0" * 400 + "]]"), "too large"),
    "5000 digits": (raw("[[0, 0, 9, 1" + "0" * 5000 + "]]"), "thousands of digits"),
    "huge": (raw("[[1e308, 0, 1e308, 9]]"), "outside the image"),
    "negative": (raw("[[-20, 0, 9, 9]]"), "outside the image"),
    "boolean": (raw("[[true, 1, 9, 9]]"), "is not [x, y, width, height]"),
    "text": (raw('[["1", 1, 9, 9]]'), "is not [x, y, width, height]"),
    "false for boxes": (raw("false"), "must be a list"),
    "shares": (raw("[[0.4, 0.2, 0.2, 0.25]]"), "multiply by its width and height, 64 x 48 px"),
    "all of it in shares": (raw("[[0, 0, 1, 1]]"), "given as shares"),
    "shares among pixels": (raw("[[4, 2, 9, 9], [0.4, 0.2, 0.2, 0.25]]"), "given as shares"),
    "deep": (b"[" * 100_000, "nested too deeply"),
    "deep boxes": (raw("[" * 100_000 + "]" * 100_000), "nested too deeply"),
    "long list": (raw(json.dumps([[1, 1, 9, 9]] * 5000)), "5000 boxes"),
    "surrogate in caption": (line(text="a man \ud83d"), "half of a character"),
    "surrogate in name": (line(file_name="\udc00.png"), "half of a character"),
    "surrogate in mask": (line(face_mask="\ud83d.png"), "half of a character"),
    "NUL in name": (line(file_name="b\0.png"), "no file can have this name"),
    "300 letters": (line(file_name="x" * 300 + ".png"), "File name too long"),
    "100,000 letters": (line(file_name="x" * 100_000), "no file can have this name"),
    "mask of 300 letters": (line(face_mask="x" * 300 + ".png"), "File name too long"),
    "mask that is a folder": (line(face_mask="sub/."), "is a folder"),
    "twice": (b'{"file_name": "b.png", "text": "x", "text": "y"}', "'text' twice"),
    "number for text": (line(text=10**50), "must be text"),
    "long value": (line(text=["x" * 10_000] * 1000), "must be text"),
    "many keys": (json.dumps({f"k{i}": i for i in range(5000)}).encode(), "is missing"),
    "UTF-16": (line().decode().encode("utf-16"), "is not UTF-8"),
}


def data_set(root: Path, *lines: bytes) -> Path:
    (root / "sub").mkdir()
    for name in "abc":
        Image.effect_noise((64, 48), 80).convert("RGB").save(root / f"{name}.png")
    (root / "metadata.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    return root


@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_is_named_left_out_and_cut(name: str, tmp_path: Path) -> None:
    bad, reason = BAD[name]
    good = json.dumps(GOOD).encode()
    root = data_set(tmp_path, good, bad, line(file_name="c.png"))
    with pytest.raises(DataError) as raised:
        load_records(root, Reading(("face", "hand")))
    first = str(raised.value).splitlines()[0]
    assert first.startswith(f"{root}/metadata.jsonl:2: ")
    assert reason in first
    assert len(first) < 1000
    records, problems = load_records(root, Reading(("face", "hand")), on_error="skip")
    assert [record.id for record in records] == ["a.png", "c.png"]
    assert len(problems) == 1
    assert inspect(root, View.plain(root, 64)).by_kind()["unusable"]


def test_a_line_ends_where_a_newline_is_and_nowhere_else(tmp_path: Path) -> None:
    odd = "one\u2028two\u0085three\x0bfour\r"
    text = json.dumps(GOOD | {"text": odd}, ensure_ascii=False).encode()
    root = data_set(tmp_path, text.replace(b"\\u000b", b"\\u000b"), line())
    records, _ = load_records(root, Reading(("face", "hand")))
    assert [record.text for record in records] == [odd, "x"]
    names = {sample.name for sample in inspect(root, View.plain(root, 64)).samples}
    assert names == {"a.png", "b.png", "c.png"}


def test_nothing_usable_says_why(tmp_path: Path) -> None:
    root = data_set(tmp_path, raw("[[0.4, 0.2, 0.2, 0.25]]"))
    with pytest.raises(DataError, match=r"shares(.|\n)*no usable sample \(1 left out\)"):
        load_records(root, Reading(("face", "hand")), on_error="skip")


def test_inspect_finds_odd_captions_and_ends_by_its_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = data_set(
        tmp_path,
        line(text="a\x00b\x1b[31m"),
        line(file_name="c.png", text=" "),
        line(file_name="a.png", text="x\ud83d", faces=[[4, 4, 20, 20]]),
    )
    words = ["inspect", str(root), "--resolution", "64", "--out", str(tmp_path / "page.html")]
    assert main(words) == 0
    assert main([*words, "--strict"]) != 0
    said = "".join(capsys.readouterr())
    for expected in ("control characters: U+0000, U+001B", "caption is missing", "half of a char"):
        assert expected in said


def test_a_metadata_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    for root in (tmp_path / "nothing", tmp_path / ("x" * 300), tmp_path):
        with pytest.raises(DataError, match=r"there is no such folder|cannot be read|holds no"):
            load_records(root, Reading(("face",)))
