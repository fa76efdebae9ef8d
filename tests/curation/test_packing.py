"""`fairhuman pack`: shards that hold all that the folder does."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from fairhuman.cli import main
from fairhuman.curation.packing import pack as packing
from fairhuman.data.place import BESIDE
from fairhuman.data.records import Reading, load_records, write_metadata
from fairhuman.data.stores.choose import UNFINISHED

KINDS = ("parquet", "webdataset")
REGIONS = ["face", "hand"]
READING = Reading(REGIONS)


@pytest.fixture
def root(people: Path, tmp_path: Path) -> Path:
    return shutil.copytree(people, tmp_path / "people", ignore=shutil.ignore_patterns(BESIDE))


def rows(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "metadata.jsonl").read_text().splitlines()]


def run(root: Path, out: Path, kind: str, *more: str) -> int:
    return main(["pack", str(root), "--to", kind, "--out", str(out), *more])


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_writes_shards_that_train(root: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    assert run(root, out, kind, "--shard-size", "16KiB") == 0
    records, problems = load_records(out, READING)
    assert not problems
    assert [record.id for record in records] == [row["file_name"] for row in rows(root)]
    for record, row in zip(records, rows(root), strict=True):
        assert record.image.read_bytes() == (root / row["file_name"]).read_bytes()
        for region in ("face", "hand"):
            mask = record.regions[region].mask
            named = row.get(f"{region}_mask")
            assert (mask and mask.read_bytes()) == (named and (root / named).read_bytes())


def test_parquet_is_as_datasets_reads_it(root: Path, tmp_path: Path) -> None:
    run(root, tmp_path / "out", "parquet")
    table = pq.read_table(tmp_path / "out" / "00000.parquet")
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert list(features) == table.schema.names
    assert features["image"] == {"_type": "Image"}
    for found, row in zip(table.to_pylist(), rows(root), strict=True):
        assert found["image"]["path"] == found["file_name"] == row["file_name"]
        assert found["image"]["bytes"] == (root / row["file_name"]).read_bytes()
        assert found.get("faces") == row.get("faces")


def test_tars_are_as_webdataset_reads_them(root: Path, tmp_path: Path) -> None:
    """A sample's members follow each other, and share their name up to the first dot."""
    run(root, tmp_path / "out", "webdataset")
    with tarfile.open(tmp_path / "out" / "00000.tar") as tar:
        keys = [name.partition(".")[0] for name in tar.getnames()]
    assert list(dict.fromkeys(keys)) == [f"{number:09d}" for number in range(len(rows(root)))]
    assert keys == sorted(keys)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_continues_and_gives_the_same_bytes(
    root: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(root, tmp_path / "whole", kind, "--shard-size", "16KiB")
    expected = contents(tmp_path / "whole")
    assert len(expected) > 3
    out = tmp_path / "out"
    writer = packing.TarWriter if kind == "webdataset" else packing.ParquetWriter
    write, written = writer.write, []

    def stop(self: Any, path: Path, *others: Any) -> None:
        write(self, path, *others)
        written.append(path)
        if len(written) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(writer, "write", stop)
        assert run(root, out, kind, "--shard-size", "16KiB") == 130
    assert (out / UNFINISHED).exists()
    assert len([name for name in contents(out) if name[0] != "."]) == 1
    with pytest.raises(ValueError, match="is not packed to its end"):
        load_records(out, READING)
    assert run(root, out, kind, "--shard-size", "16KiB") == 0
    assert contents(out) == expected


def test_a_stopped_run_does_not_continue_with_other_files(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / UNFINISHED).write_text("{}")
    assert run(root, out, "parquet") == 2
    assert "holds what was packed in part from other files" in capsys.readouterr().err


def _outside(root: Path, row: dict[str, Any]) -> None:
    Image.new("L", (64, 64)).save(root.parent / "m.png")
    row["face_mask"] = "../m.png"


MISTAKES = {
    "no file": (lambda root, row: row.update(file_name="no.png"), "no.png: there is no such file"),
    "outside": (_outside, "m.png is not in the data's folder: move or copy it there"),
    "twice": (lambda root, row: row.update(file_name="000000.png"), "is listed already ("),
    "no name": (lambda root, row: row.pop("file_name"), "must have 'file_name'"),
    "half": (lambda root, row: row.update(text="\ud800"), "half a character"),
    "caption": (lambda root, row: row.update(text=[1]), "text = [1]: must be text"),
    "the picture's key": (lambda root, row: row.update(image=1), "has the key 'image'"),
    "mask": (lambda root, row: row.update(hand_mask=3), "hand_mask = 3: must be text"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_row_that_cannot_be_packed_is_named_before_anything_is_written(
    root: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = rows(root)
    lines[0]["file_name"], old = "000000.png", lines[0]["file_name"]
    os.rename(root / old, root / "000000.png")
    MISTAKES[name][0](root, lines[1])
    (root / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run(root, tmp_path / "out", "parquet") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{root}/metadata.jsonl:2: " in line
    assert MISTAKES[name][1] in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_keys_of_other_names_are_packed_under_ours(root: Path, tmp_path: Path, kind: str) -> None:
    names = {"file_name": "image", "text": "text_english", "face_mask": "mask_face"}
    lines = [{names.get(key, key): value for key, value in row.items()} for row in rows(root)]
    lines[2]["text"] = "not this"
    write_metadata(root, lines)
    expected, _ = load_records(root, Reading(REGIONS, columns=names))
    options = [f"--column={ours}={theirs}" for ours, theirs in names.items()]
    assert run(root, tmp_path / "out", kind, *options) == 0
    records, _ = load_records(tmp_path / "out", READING)
    assert [(r.id, r.text) for r in records] == [(r.id, r.text) for r in expected]
    masks = [[r.regions["face"].mask is None for r in one] for one in (records, expected)]
    assert masks[0] == masks[1]


def test_values_that_have_no_column_of_their_own(root: Path, tmp_path: Path) -> None:
    lines = rows(root)
    for number, value in enumerate([1, 2.5, True, {"a": [1]}, None, "x"]):
        lines[number]["anything"] = value
    lines[0]["number"], lines[1]["number"] = 1, 2.5
    write_metadata(root, lines)
    run(root, tmp_path / "out", "parquet")
    found = pq.read_table(tmp_path / "out" / "00000.parquet").to_pylist()
    assert [row["anything"] for row in found[:6]] == ["1", "2.5", "true", '{"a": [1]}', None, '"x"']
    assert [row["number"] for row in found[:3]] == [1.0, 2.5, None]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shard-size", "0MiB"], "--shard-size 0MiB: must be a whole number of KiB, MiB or GiB"),
        (["--shard-size", "1GB"], "--shard-size 1GB: must be"),
        (["--column", "text"], "--column text: must be OURS=YOURS"),
    ],
)
def test_options_that_cannot_be(
    root: Path,
    tmp_path: Path,
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(root, tmp_path / "out", "parquet", *options) == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_holds_something_else_is_left_alone(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(root, root, "parquet") == 2
    assert "is not empty" in capsys.readouterr().err
    write_metadata(root, [])
    assert run(root, tmp_path / "out", "parquet") == 2
    assert "holds no image" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_photographs_are_packed_as_they_are(wholebody: Path, tmp_path: Path) -> None:
    """Real JPEGs with captions: the pixels of the packed ones are those of the files."""
    from fairhuman.common.images import open_image

    people = wholebody.parent / "people"
    for kind in KINDS:
        run(people, tmp_path / kind, kind, "--shard-size", "1MiB")
        records, problems = load_records(tmp_path / kind, Reading(REGIONS, "absent"))
        assert not problems
        assert [record.id for record in records] == [row["file_name"] for row in rows(people)]
        for record in records:
            expected = open_image(people / record.id)
            assert open_image(record.image).tobytes() == expected.tobytes()
