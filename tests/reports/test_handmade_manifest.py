"""A manifest, layout, balancer or config made by hand is one line, and `auto` passes over it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fairhuman import checkpointing
from fairhuman.checkpointing.manifest import Manifest, Progress, Setup
from fairhuman.cli import main
from fairhuman.common.errors import ConfigError
from fairhuman.zero.shard_map import Buffer, Piece, ShardMap

DEEP = "[" * 100_000 + "]" * 100_000


def whole(output: Path, step: int) -> Path:
    folder = output / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    ShardMap({"w": (4,)}, [[Buffer(0, 4, [Piece("w", 0, 4, 0)])]]).write(folder)
    nan = torch.full((2, 2), torch.nan)
    state = {"squares": nan[0], "cosines": nan, "log_kappas": nan[0], "since": 3}
    torch.save(state, folder / "balancer.pt")
    (folder / "config.yaml").write_text("train: {steps: 3}\n")
    seal(folder)
    return folder


def seal(folder: Path) -> None:
    """Without digests, or with a size that fits, so that the part itself is looked at."""
    (folder / "manifest.json").unlink(missing_ok=True)
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    setup = Setup(1, 2, (), "fp32", "AdamW")
    Manifest(1, Progress(int(folder.name[5:]), 8), sizes, setup, 4).write(folder)


def with_key(key: str, value: Any) -> Callable[[Any], Any]:
    def change(tree: Any) -> Any:
        *parents, last = key.split(".")
        node = tree
        for parent in parents:
            node = node[parent]
        node[last] = value
        return tree

    return change


def without(key: str) -> Callable[[Any], Any]:
    return lambda tree: {name: value for name, value in tree.items() if name != key}


MANIFESTS: dict[str, Callable[[Any], Any]] = {
    "a list": lambda _: [],
    "a number": lambda _: 7,
    "no files": without("files"),
    "no progress": without("progress"),
    "another key": with_key("more", 1),
    "a digest by itself": with_key("digest", "0" * 64),
    "negative step": with_key("progress.step", -1),
    "huge step": with_key("progress.step", 10**30),
    "step as text": with_key("progress.step", "2"),
    "a fraction of a step": with_key("progress.step", 2.5),
    "a boolean of ranks": with_key("ranks", True),
    "no ranks at all": with_key("ranks", 0),
    "other ranks": with_key("setup.ranks", 3),
    "files as a list": with_key("files", ["layout.json"]),
    "negative size": with_key("files", {"layout.json": -1}),
    "a file elsewhere": with_key("files", {"../layout.json": 1}),
    "an absolute file": with_key("files", {"/etc/passwd": 1}),
    "NaN": with_key("progress.best", {"metric": "x", "value": float("nan"), "step": 1}),
    "no such stage": with_key("setup.stage", 9),
    "no such offload": with_key("setup.offload", ["disk"]),
    "versions as a list": with_key("versions", []),
    "digests of others": with_key("digests", {"x": "0" * 64}),
}
LAYOUTS: dict[str, Any] = {
    "a list": [],
    "no ranks": {"shapes": {}},
    "another key": {"shapes": {}, "ranks": [], "x": 1},
    "shapes of text": {"shapes": {"w": "4"}, "ranks": []},
    "negative": {"shapes": {"w": [-4]}, "ranks": [[[0, 4, [["w", 0, 4, 0]]]]]},
    "an unknown parameter": {"shapes": {"w": [4]}, "ranks": [[[0, 4, [["v", 0, 4, 0]]]]]},
    "beyond its buffer": {"shapes": {"w": [4]}, "ranks": [[[0, 4, [["w", 0, 4, 1]]]]]},
    "beyond its parameter": {"shapes": {"w": [4]}, "ranks": [[[0, 9, [["w", 2, 4, 0]]]]]},
    "no such group": {"shapes": {"w": [4]}, "ranks": [[[7, 4, [["w", 0, 4, 0]]]]]},
    "elements that are lacking": {"shapes": {"w": [4]}, "ranks": []},
    "huge": {"shapes": {"w": [10**40]}, "ranks": []},
}
TWO = torch.eye(2)
BALANCERS: dict[str, Any] = {
    "a list": [1],
    "text": {"squares": "x"},
    "numbers for names": {1: 2},
    "negative": {"squares": -TWO[0], "cosines": TWO, "log_kappas": TWO[0], "since": 1},
    "no cosine": {"squares": TWO[0], "cosines": 5 * TWO, "log_kappas": TWO[0], "since": 1},
    "another shape": {"squares": TWO[0], "cosines": TWO[0], "log_kappas": TWO[0], "since": 1},
    "infinite": {"squares": TWO[0] / 0, "cosines": TWO, "log_kappas": TWO[0], "since": 1},
    "negative count": {"squares": TWO[0], "cosines": TWO, "log_kappas": TWO[0], "since": -1},
    "a key less": {"squares": TWO[0]},
    "a view of petabytes": {"squares": torch.ones(1).expand(2**50)},
}


def refused(output: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        checkpointing.find(output / "other", str(folder))
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 700
    found = checkpointing.find(output, "auto")
    assert found is not None
    assert found.name == "step-00000001"
    assert main(["doctor", "--checkpoint", str(folder)]) == 1
    assert "Traceback" not in capsys.readouterr().out


@pytest.fixture
def newest(tmp_path: Path) -> Path:
    whole(tmp_path, 1)
    folder = whole(tmp_path, 2)
    assert checkpointing.find(tmp_path, "auto") == folder
    return folder


@pytest.mark.parametrize("name", [*MANIFESTS, "deep", "digits", "bytes", "empty", "a pipe's"])
def test_manifests(name: str, newest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = newest / "manifest.json"
    tree = json.loads(path.read_text())
    texts: dict[str, Any] = {
        "deep": DEEP,
        "digits": json.dumps(tree).replace('"step": 2', '"step": ' + "9" * 5000),
        "bytes": b"\xff\xfe\x00",
        "empty": "",
        "a pipe's": "null",
    }
    text: Any = json.dumps(MANIFESTS[name](tree)) if name in MANIFESTS else texts[name]
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(newest.parents[1], newest, capsys)


@pytest.mark.parametrize("name", [*LAYOUTS, "deep"])
def test_layouts(name: str, newest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = json.dumps(LAYOUTS[name]) if name in LAYOUTS else DEEP
    (newest / "layout.json").write_text(text)
    seal(newest)
    refused(newest.parents[1], newest, capsys)


@pytest.mark.parametrize("name", BALANCERS)
def test_balancers(name: str, newest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(BALANCERS[name], newest / "balancer.pt")
    seal(newest)
    refused(newest.parents[1], newest, capsys)


@pytest.mark.parametrize("text", ["[", "- 1", "x: " + "[" * 3000, "a: 1\n" * 300_000])
def test_configs(text: str, newest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (newest / "config.yaml").write_text(text)
    seal(newest)
    refused(newest.parents[1], newest, capsys)
