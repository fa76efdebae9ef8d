"""Data sets on the hub, by the hub's own client and a server that answers like it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_hub import Hub, Repository, fake_hub, use_hub
from small_config import GOOD

from fairhuman.cli import main
from fairhuman.common.errors import UserError
from fairhuman.config import Config, load_config
from fairhuman.data import hub as hub_data
from fairhuman.data.index.load import load

URL = "hf://datasets/me/people"
KEY = "datasets/me/people"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    hub_data._choose.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with fake_hub() as found:
        use_hub(monkeypatch, found.address, tmp_path / "hub")
        yield found
    hub_data._choose.cache_clear()


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    hub_data._choose.cache_clear()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")


def config(tmp_path: Path, root: str, *more: str) -> Config:
    path = tmp_path / "config.yaml"
    path.write_text(GOOD)
    return load_config(path, [f"data.root={root}", *more])


def texts(tmp_path: Path, root: str, *more: str) -> list[str]:
    records, _ = load(config(tmp_path, root, *more))
    return sorted(record.text for record in records)


def refusal(tmp_path: Path, root: str, *more: str) -> str:
    with pytest.raises(UserError) as error:
        load(config(tmp_path, root, *more))
    (line,) = str(error.value).splitlines()
    return line


@pytest.fixture
def picture(people: Path) -> bytes:
    return next(people.rglob("*.png")).read_bytes()


def parquet(picture: bytes, *captions: str) -> bytes:
    rows = [
        {"image": {"bytes": picture, "path": None}, "text": text, "faces": [], "hands": []}
        for text in captions
    ]
    kind = pa.list_(pa.list_(pa.float64()))
    table = pa.Table.from_pylist(rows)
    for name in ("faces", "hands"):
        column = table.schema.get_field_index(name)
        table = table.set_column(column, name, table.column(name).cast(kind))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="none")
    return bytes(sink.getvalue())


def splits(picture: bytes) -> dict[str, bytes]:
    return {
        "README.md": b"# People",
        "data/train-00000-of-00002.parquet": parquet(picture, "one"),
        "data/train-00001-of-00002-0a1b2c.parquet": parquet(picture, "two", "three"),
        "data/test-00000-of-00001.parquet": parquet(picture, "four"),
    }


def downloads(hub: Hub) -> list[str]:
    return [path.rpartition("/")[2] for path in hub.asked if path.startswith("GET /datasets/")]


def test_a_split_is_downloaded_alone_and_once(hub: Hub, tmp_path: Path, picture: bytes) -> None:
    hub.repositories[KEY] = Repository(files=splits(picture))
    assert "such as data.split=train" in refusal(tmp_path, URL)
    assert not downloads(hub)
    assert texts(tmp_path, URL, "data.split=train") == ["one", "three", "two"]
    assert len(downloads(hub)) == 2
    hub_data._choose.cache_clear()
    assert texts(tmp_path, URL, "data.split=train") == ["one", "three", "two"]
    assert len(downloads(hub)) == 2
    assert texts(tmp_path, f"{URL}/data", "data.split=test") == ["four"]
    assert "has no shards val-00000-of" in refusal(tmp_path, URL, "data.split=val")
    assert not list((tmp_path / "hub").rglob(".fairhuman"))


def test_images_next_to_metadata_are_links_into_the_cache(
    hub: Hub, tmp_path: Path, picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"file_name": "a/1.png", "text": "one", "faces": [], "hands": []}
    files = {
        "train/metadata.jsonl": json.dumps(row).encode(),
        "train/a/1.png": picture,
        "other/big.bin": b"",
    }
    hub.repositories[KEY] = Repository(files=files)
    assert texts(tmp_path, f"{URL}@main") == ["one"]
    assert sorted(downloads(hub)) == ["1.png", "metadata.jsonl"]
    offline(monkeypatch)
    assert texts(tmp_path, f"{URL}@main") == ["one"]
    offline(monkeypatch)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert texts(tmp_path, f"{URL}@main/train") == ["one"]


def test_what_is_not_in_the_cache_is_refused_at_once_without_a_network(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline(monkeypatch)
    began = time.monotonic()
    line = refusal(tmp_path, URL)
    assert line.startswith(f"data.root = '{URL}': is not in the hub's cache, and the hub cannot be")
    assert time.monotonic() - began < 10
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refusal(tmp_path, URL)


@pytest.mark.parametrize(
    ("root", "told"),
    [
        ("hf://datasets/me/none", "there is no such repository on the hub that this user may see"),
        (f"{URL}@v9", "the repository on the hub has no such revision"),
        (URL, "there is no metadata.jsonl, Parquet or tar; add one of its folders: x/y"),
        (f"{URL}/z", "there is no metadata.jsonl, Parquet or tar; add one of its folders: x/y"),
        ("hf://me/people", "write hf://datasets/OWNER/NAME, then @REVISION and /FOLDER"),
        ("hf://datasets/people", "write hf://datasets/OWNER/NAME, then @REVISION and /FOLDER"),
        (f"{URL}/../x", "write hf://datasets/OWNER/NAME, then @REVISION and /FOLDER"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(
    hub: Hub, tmp_path: Path, root: str, told: str
) -> None:
    hub.repositories[KEY] = Repository(files={"x/y/0.tar": b"", "README.md": b""})
    line = refusal(tmp_path, root)
    assert line.startswith(f"data.root = '{root}': ")
    assert told in line


def test_a_hub_name_without_its_scheme_is_told_how_to_write_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(GOOD)
    assert main(["train", "--config", str(path), "--dry-run", "data.root=me/people"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("there is no such folder; one on the hub is hf://datasets/me/people")
