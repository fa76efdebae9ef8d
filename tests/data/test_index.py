"""The index of a data set: it finds what opening every file finds, and opens few."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from ranks import run_ranks
from test_data import MISTAKES

from fairhuman.common.errors import DataError, OutputError
from fairhuman.config import Config
from fairhuman.data.index import check
from fairhuman.data.index.files import Files
from fairhuman.data.index.load import load
from fairhuman.data.index.records import Records
from fairhuman.data.place import BESIDE
from fairhuman.data.records import Reading, Record, load_records, write_metadata

AGO = 10**12  # nanoseconds: long before anything that a test does


def config_of(root: Path, method: str = "full", **data: Any) -> Config:
    return Config.model_validate(
        {
            "model": {"pretrained": "unused", "method": method},
            "data": {"root": str(root), **data},
            "train": {"output_dir": "x", "steps": 1, "batch_size": 1},
            "deepspeed": {"zero_optimization": {"stage": 2}},
        }
    )


def age(root: Path) -> None:
    """Let the pictures have been there for a while."""
    for path in root.rglob("*"):
        if path.suffix in (".png", ".jpg") and BESIDE not in path.parts:
            told = path.stat()
            os.utime(path, ns=(told.st_atime_ns, told.st_mtime_ns - AGO))


def spoil(path: Path) -> None:
    """Make a file unreadable behind its time and size: who opens it, finds it damaged."""
    told = path.stat()
    path.write_bytes(bytes(told.st_size))
    os.utime(path, ns=(told.st_atime_ns, told.st_mtime_ns))


@pytest.fixture
def root(people: Path, tmp_path: Path) -> Path:
    """The people, with masks and boxes, none of them young."""
    copied = shutil.copytree(people, tmp_path / "people", ignore=shutil.ignore_patterns(BESIDE))
    age(copied)
    return copied


def rows(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "metadata.jsonl").read_text().splitlines()]


def pictures(root: Path, kind: str) -> list[Path]:
    """Return the files that metadata.jsonl names, of a kind."""
    keys = ("file_name",) if kind == check.IMAGES else ("face_mask", "hand_mask")
    return [root / row[key] for row in rows(root) for key in keys if row.get(key)]


def plainly(config: Config) -> tuple[list[Record], list[str]]:
    """Read the data set without an index."""
    records, problems = load_records(
        Path(str(config.data.root)), Reading.of(config), on_error=config.data.on_error
    )
    return records, [str(problem) for problem in problems]


def by_index(config: Config) -> tuple[list[Record], list[str]]:
    records, problems = load(config)
    return list(records), [str(problem) for problem in problems]


def outcome(read: Callable[[Config], Any], config: Config) -> Any:
    """Return what is read, or the error's message."""
    try:
        return read(config)
    except DataError as error:
        return str(error)


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_found_as_without_an_index(root: Path, name: str) -> None:
    lines = rows(root)
    MISTAKES[name][0](root, lines[1])
    write_metadata(root, lines)
    for _ in range(2):  # the second time, most is known
        skipping = config_of(root, on_error="skip")
        assert by_index(skipping) == plainly(skipping)
        expected = outcome(plainly, config_of(root))
        assert isinstance(expected, str)
        assert outcome(by_index, config_of(root)) == expected


@pytest.mark.parametrize("seed", range(6))
def test_drawn_data_sets_are_read_as_without_an_index(tmp_path: Path, seed: int) -> None:
    """Boxes about the image's edges, masks of any size, shared, absent, outside, links."""
    draw = random.Random(seed)
    (tmp_path / "data").mkdir()
    root, lines = tmp_path / "data", []
    names = [f"{i}.png" for i in range(12)]
    for name in (*names, "../out.png"):
        size = draw.choice([(40, 30), (30, 40), (1, 1)])
        Image.new("L", size, draw.choice([0, 255])).save(root / name)
    os.symlink(tmp_path / "out.png", root / "link.png")
    others = [*names, "link.png", "../out.png", "no.png", str(root / "1.png")]
    for name in draw.sample(others, 12):
        line: dict[str, Any] = {"file_name": name, "text": draw.choice(["", "a \u00e9 \U0001f600"])}
        for region in ("face", "hand"):
            if draw.random() < 0.7:
                line[f"{region}s"] = [
                    [draw.choice([-1.5, -1, 0, 0.2, 9]) for _ in "xy"]
                    + [draw.choice([0.1, 0.9, 20, 31, 40, 41.1]) for _ in "wh"]
                    for _ in range(draw.randrange(4))
                ]
            if draw.random() < 0.4:
                line[f"{region}_mask"] = draw.choice(others)
        if draw.random() < 0.8:
            line["conditioning_image"] = draw.choice(others)
        lines.append(line)
    write_metadata(root, lines)
    read: dict[str, Any]
    for method in ("full", "controlnet"):
        for read in ({}, {"outside": "allow"}, {"unannotated": "absent"}):
            config = config_of(root, method, on_error="skip", **read)
            expected = outcome(plainly, config)
            for _ in range(2):
                assert outcome(by_index, config) == expected


@pytest.mark.parametrize("kind", [check.IMAGES, check.MASKS])
def test_what_has_not_changed_is_not_opened_again(root: Path, kind: str) -> None:
    expected = by_index(config_of(root))
    for path in pictures(root, kind):
        spoil(path)
    assert by_index(config_of(root)) == expected
    with pytest.raises(DataError, match="cannot be read as an image"):
        plainly(config_of(root))


@pytest.mark.parametrize("kind", [check.IMAGES, check.MASKS])
@pytest.mark.parametrize("change", ["size", "time", "gone"])
def test_a_changed_file_is_opened_again(root: Path, kind: str, change: str) -> None:
    load(config_of(root))
    path = pictures(root, kind)[-1]
    if change == "size":
        told = path.stat()
        path.write_bytes(bytes(told.st_size + 1))
        os.utime(path, ns=(told.st_atime_ns, told.st_mtime_ns))
    elif change == "time":
        spoil(path)
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    else:
        path.unlink()
    expected = outcome(plainly, config_of(root))
    assert path.name in str(expected)
    assert outcome(by_index, config_of(root)) == expected


def test_new_lines_open_new_files_alone(root: Path) -> None:
    lines = rows(root)
    write_metadata(root, lines[:-3])
    load(config_of(root))
    for path in pictures(root, check.IMAGES):
        spoil(path)
    write_metadata(root, [{**line, "text": "another"} for line in lines])
    records, _ = load(config_of(root))
    assert len(records) == len(lines)
    assert {record.text for record in records} == {"another"}


def test_a_file_that_has_just_changed_is_not_taken_for_known(root: Path) -> None:
    """Its file system's clock may be too coarse to tell the next change from this one."""
    young = pictures(root, check.IMAGES)[0]
    young.touch()
    load(config_of(root))
    spoil(young)
    with pytest.raises(DataError, match=young.name):
        load(config_of(root))


def test_checks_of_the_header_and_on_trust(root: Path) -> None:
    path = pictures(root, check.IMAGES)[0]
    content = path.read_bytes()
    path.write_bytes(content[:-200])
    age(root)
    load(config_of(root, check="header"))
    with pytest.raises(DataError, match=path.name):
        load(config_of(root, check="full"))  # what was seen in part is then seen whole
    path.write_bytes(content)
    age(root)
    expected = by_index(config_of(root, check="full"))
    path.write_bytes(b"no image")
    assert by_index(config_of(root, check="trust")) == expected
    for how in ("header", "full"):
        with pytest.raises(DataError, match=path.name):
            load(config_of(root, check=how))


def test_trust_opens_what_is_not_known(root: Path) -> None:
    expected = plainly(config_of(root))
    assert by_index(config_of(root, check="trust")) == expected
    pictures(root, check.IMAGES)[0].unlink()
    write_metadata(root, [*rows(root), {**rows(root)[0], "file_name": "no.png"}])
    with pytest.raises(DataError, match=r"no\.png: there is no such file"):
        load(config_of(root, check="trust"))


def test_a_stopped_check_continues_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0)
    lines = []
    for i in range(150):
        pixels = noise.integers(0, 256, (200, 200, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png", compress_level=1)
        lines.append({"file_name": f"{i}.png", "text": "", "faces": [], "hands": []})
    write_metadata(tmp_path, lines)
    age(tmp_path)
    folder = tmp_path / BESIDE
    monkeypatch.setattr(check, "SAVE_S", 0.0)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)

    def interrupt() -> None:
        while not list(folder.glob("images-*.arrow")):
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        load(config_of(tmp_path))
    names = [f"{i}.png" for i in range(150)]
    known = Files(folder, check.IMAGES).look_up(pa.chunked_array([names])).found
    assert 0 < known.sum() < 150
    for name, is_known in zip(names, known, strict=True):
        if is_known:
            spoil(tmp_path / name)
    records, _ = load(config_of(tmp_path))
    assert len(records) == 150
    assert not list(folder.glob("images-*"))


def of_rank(root: str) -> tuple[list[Record], list[str]]:
    return by_index(config_of(Path(root), on_error="skip"))


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_find_the_same_together(root: Path, ranks: int) -> None:
    lines = rows(root)
    for number, (change, _) in enumerate(MISTAKES.values()):
        change(root, lines[number])
    write_metadata(root, lines)
    expected = plainly(config_of(root, on_error="skip"))
    assert len(expected[1]) >= len(MISTAKES)
    for _ in range(2):
        assert run_ranks(of_rank, ranks, str(root)) == [expected] * ranks


def test_another_process_takes_the_records_by_their_file(root: Path) -> None:
    records, _ = load(config_of(root))
    sent = pickle.dumps(records[3:9])
    assert len(sent) < 1500
    found: Records = pickle.loads(sent)
    assert list(found) == list(records)[3:9]
    assert list(found.ids()) == [record.id for record in found]
    assert found.shows().tolist() == [
        any(a.boxes or a.mask for a in record.regions.values()) for record in found
    ]


@pytest.mark.parametrize("name", ["listing", "images", "masks"])
@pytest.mark.parametrize("left", [0, 50, -8])
def test_a_damaged_index_is_made_again(root: Path, name: str, left: int) -> None:
    expected = by_index(config_of(root))
    (path,) = (root / BESIDE).glob(f"{name}*.arrow")
    whole = path.read_bytes()
    path.write_bytes(whole[:left])
    assert by_index(config_of(root)) == expected
    assert len(path.read_bytes()) == len(whole)


def test_where_the_index_is(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / BESIDE).write_text("no folder can be made here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(root.parent / "cache"))
    expected = plainly(config_of(root))
    assert by_index(config_of(root)) == expected
    assert len(list((root.parent / "cache/fairhuman/index").glob("*/listing-*"))) == 1
    chosen = root.parent / "mine" / "index"
    assert by_index(config_of(root, index=str(chosen))) == expected
    assert list(chosen.glob("images.arrow"))
    with pytest.raises(OutputError, match=r"set data\.index"):
        load(config_of(root, index=str(root / "metadata.jsonl")))


def test_listings_of_old_are_removed(root: Path) -> None:
    for number in range(7):
        write_metadata(root, [{**line, "text": f"{number}"} for line in rows(root)])
        records, _ = load(config_of(root))
        assert records[0].text == f"{number}"
    assert len(list((root / BESIDE).glob("listing-*"))) == 4
