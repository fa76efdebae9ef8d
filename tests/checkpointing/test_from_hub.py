"""Checkpoints on the hub to continue from, by the hub's own client and a server that answers so."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_hub import Hub, Repository, fake_hub, use_hub
from ranks import run_ranks
from small_config import GOOD

from fairhuman import checkpointing
from fairhuman.checkpointing.manifest import Manifest, Progress
from fairhuman.common.digests import digests
from fairhuman.common.errors import ConfigError, OutputError

URL = "hf://me/people"
KEY = "models/me/people"
STATES = "deepspeed/mp_rank_00_model_states.pt"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with fake_hub() as found:
        use_hub(monkeypatch, found.address, tmp_path / "hub")
        yield found


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def whole(output: Path, step: int, weights: bytes = b"weights") -> Path:
    folder = output / "checkpoints" / f"step-{step:08d}"
    (folder / "deepspeed").mkdir(parents=True)
    (folder / STATES).write_bytes(weights)
    (folder / "layout.json").write_text('{"shapes": {}, "ranks": []}')
    names = [STATES, "layout.json"]
    files = {name: (folder / name).stat().st_size for name in names}
    Manifest(1, Progress(step, 8 * step), files, digests=digests(folder, names)).write(folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    """What a run of 30 steps has pushed, and more."""
    for step in (9, 20, 100):
        whole(tmp_path / "run", step)
    more = {"README.md": b"", "old/manifest.json": b"{}", "checkpoints/notes/x.txt": b""}
    return contents(tmp_path / "run") | more


def downloads(hub: Hub) -> list[str]:
    return [path for path in hub.asked if path.startswith("GET /me/")]


def refusal(out: Path, url: str) -> str:
    before = contents(out)
    with pytest.raises(ConfigError) as error:
        checkpointing.find(out, url)
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"train.resume = '{url}': ")
    assert contents(out) == before
    return line


@pytest.mark.parametrize(
    ("asked", "step"),
    [("", 100), ("@main", 100), ("/checkpoints/step-00000020", 20), ("@v1", 9), ("@v1/", 9)],
)
def test_the_checkpoint_that_is_asked_for_is_there_whole_and_nothing_else(
    hub: Hub, out: Path, files: dict[str, bytes], asked: str, step: int
) -> None:
    first = {name: content for name, content in files.items() if "step-00000009" in name}
    hub.repositories[KEY] = Repository(files=files, tags={"v1": Repository(files=first)})
    folder = checkpointing.find(out, URL + asked)
    name = f"checkpoints/step-{step:08d}/"
    assert folder == out / name
    assert contents(out) == {n: content for n, content in files.items() if n.startswith(name)}
    assert checkpointing.damage(folder) is None
    assert checkpointing.newest(out) == folder  # train.resume=auto continues with it
    before = len(downloads(hub))
    assert checkpointing.find(out, URL + asked) == folder
    assert not [path for path in downloads(hub)[before:] if "manifest" not in path]


def test_a_checkpoint_alone_in_a_repository_is_taken(hub: Hub, out: Path, tmp_path: Path) -> None:
    hub.repositories[KEY] = Repository(files=contents(whole(tmp_path, 7)))
    assert checkpointing.find(out, URL) == out / "checkpoints/step-00000007"


def test_a_run_that_went_on_is_not_mixed_with_it(
    hub: Hub, out: Path, files: dict[str, bytes]
) -> None:
    hub.repositories[KEY] = Repository(files=files)
    told = "went on to step-00000100; set train.resume=auto to continue it, or choose another"
    other = whole(out, 100, b"another")
    assert told in refusal(out, URL)
    assert told in refusal(out, f"{URL}/checkpoints/step-00000009")
    assert (other / STATES).read_bytes() == b"another"
    assert all("manifest" in path for path in downloads(hub))


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("hf://me/none", "no such repository on the hub that this user may see"),
        (f"{URL}@v9", "no such revision"),
        ("hf://me/empty", "holds no checkpoints/step-NNNNNNNN with a manifest.json"),
        (f"{URL}/checkpoints/step-00000021", "no checkpoint checkpoints/step-00000021 with a"),
        (f"{URL}/old", "old/manifest.json: "),
        (f"{URL}/checkpoints/step-00000009", f"is not whole: {STATES} is missing"),
        (f"{URL}/checkpoints/step-00000020", "is broken: layout.json: "),
        ("hf://people", "write hf://OWNER/NAME, then @REVISION and /checkpoints/step-NNNNNNNN"),
        ("hf://datasets/me/people", "write hf://OWNER/NAME, then @REVISION"),
        (f"{URL}/../x", "write hf://OWNER/NAME, then @REVISION"),
        (f"{URL}/checkpoints/step-00000009@v1", "write hf://OWNER/NAME, then @REVISION"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    hub: Hub, out: Path, files: dict[str, bytes], url: str, told: str
) -> None:
    del files[f"checkpoints/step-00000009/{STATES}"]
    files["checkpoints/step-00000020/layout.json"] = b"." * 27
    hub.repositories[KEY] = Repository(files=files)
    hub.repositories["models/me/empty"] = Repository(files={"README.md": b""})
    assert told in refusal(out, url)
    assert not list(out.glob("checkpoints/*"))


def test_without_a_network_it_is_refused_at_once(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_hub(monkeypatch, "http://127.0.0.1:9")
    began = time.monotonic()
    assert "the hub cannot be reached" in refusal(out, URL)
    assert time.monotonic() - began < 10
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refusal(out, URL)


def test_a_disk_without_room_is_told_before_the_download(
    hub: Hub, out: Path, tmp_path: Path
) -> None:
    folder = whole(tmp_path, 7)
    Manifest(1, Progress(7, 56), {STATES: 1 << 52}).write(folder)
    hub.repositories[KEY] = Repository(files=contents(folder))
    with pytest.raises(OutputError, match=r"train.resume = .* takes 4194304.00 GiB, and the"):
        checkpointing.find(out, URL)
    assert all("manifest" in path for path in downloads(hub))


def chosen(address: str, folder: Path, urls: list[str]) -> list[Any]:
    """Return what a rank resumes from by each URL, or the line by which it is refused."""
    from fairhuman.config import load_config
    from fairhuman.training.resume import _choose

    found: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        use_hub(patch, address, folder / "hub")
        for url in urls:
            changed = [f"train.output_dir={folder / 'out'}", f"train.resume={url}"]
            try:
                found.append(_choose(load_config(folder / "config.yaml", changed)))
            except ConfigError as error:
                found.append(str(error))
    return found


def test_all_ranks_agree_on_it_and_a_damaged_one_is_removed(
    hub: Hub, tmp_path: Path, files: dict[str, bytes]
) -> None:
    (tmp_path / "config.yaml").write_text(GOOD)
    files[f"checkpoints/step-00000100/{STATES}"] = b"WEIGHTS"
    hub.repositories[KEY] = Repository(files=files)
    good = f"{URL}/checkpoints/step-00000020"
    first, second = run_ranks(chosen, 2, hub.address, tmp_path, [URL, good])
    assert first == second
    damaged, taken = first
    assert damaged.startswith(f"train.resume = '{URL}': is damaged: {STATES} is not what was")
    folder = tmp_path / "out/checkpoints/step-00000020"
    assert taken == (folder, [f"{folder} was downloaded from {good}"])
    assert list(folder.parent.iterdir()) == [folder]
