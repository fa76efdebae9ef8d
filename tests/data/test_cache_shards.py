"""Shards of the cache: every entry is found, also of what a kill or a full disk has left."""

from __future__ import annotations

import hashlib
import os
import random
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fairhuman.common.errors import OutputError
from fairhuman.data.cache_shards import (
    MAGIC,
    SUFFIX,
    Shards,
    merged,
    read_index,
    remove_partial,
    write_shards,
)
from fairhuman.data.keys import BYTES, as_keys, places_of


def made_up(count: int, seed: int = 0) -> dict[bytes, bytes]:
    """Return entries of 0 to 300 bytes; some keys end with zeros."""
    draw = random.Random(seed)
    first = draw.randbytes(BYTES)
    keys = [first[: BYTES - zeros] + bytes(zeros) for zeros in range(3)][:count]
    keys += [draw.randbytes(BYTES) for _ in range(count - 3)]
    return {key: draw.randbytes(draw.randrange(300)) for key in keys}


def opened(folder: Path) -> Shards:
    shards = Shards(folder)
    shards.index = read_index(folder)
    return shards


def contents(shards: Shards, keys: list[bytes]) -> dict[bytes, bytes]:
    return {key: shards.read(key).content for key in keys if shards.index.has(as_keys([key]))[0]}


@pytest.mark.parametrize(
    ("count", "size"), [(0, 1), (1, 1), (5, 1), (50, 1000), (0, 10**9), (2, 10**9), (333, 10**9)]
)
def test_every_entry_is_found_and_no_other(tmp_path: Path, count: int, size: int) -> None:
    entries = made_up(count)
    written = write_shards(tmp_path / "of", iter(entries.items()), size=size)
    shards = opened(tmp_path / "of")
    assert not shards.index.unusable
    assert contents(shards, list(entries)) == entries
    assert set(written.names) == set(shards.index.names)
    total = sum(map(len, entries.values()))
    assert total / (size + 300) <= len(written.names) <= total / size + 1
    others = made_up(20, seed=1)
    assert contents(shards, list(others)) == {
        key: content for key, content in entries.items() if key in others
    }
    with pytest.raises(OutputError, match="lacks an entry"):
        shards.read(b"?" * BYTES)


def test_an_index_is_that_of_all_who_wrote(tmp_path: Path) -> None:
    """As the ranks', also where two have written the same."""
    parts = [made_up(40, seed) for seed in (1, 2, 1)]
    written = [write_shards(tmp_path, iter(part.items()), size=2000) for part in parts]
    shards, entries = Shards(tmp_path), parts[0] | parts[1]
    shards.index = merged(written)
    assert contents(shards, list(entries)) == entries
    assert np.array_equal(shards.index.keys, read_index(tmp_path).keys)
    shards.index = merged([read_index(tmp_path / "nothing"), shards.index])
    assert contents(shards, list(entries)) == entries


@pytest.mark.parametrize("known", [0, 1, 100])
def test_places_are_those_of_a_dict(known: int) -> None:
    keys = sorted(made_up(known))
    asked = [*keys, *made_up(50, seed=1)]
    places = {key: place for place, key in enumerate(keys)}
    found = places_of(as_keys(asked), as_keys(keys))
    assert found.tolist() == [places.get(key, -1) for key in asked]


def test_reading_leaves_no_file_open(tmp_path: Path) -> None:
    entries = made_up(9)
    write_shards(tmp_path, iter(entries.items()), size=1)
    before = len(os.listdir("/proc/self/fd"))
    contents(opened(tmp_path), list(entries))
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_came_before_an_error_is_kept(tmp_path: Path) -> None:
    entries = made_up(20)

    def failing() -> Iterator[tuple[bytes, bytes]]:
        yield from entries.items()
        raise ValueError("the encoder")

    for size in (1000, 10**9):
        with pytest.raises(ValueError, match="the encoder"):
            write_shards(tmp_path / str(size), failing(), size=size)
        assert contents(opened(tmp_path / str(size)), list(entries)) == entries


def test_a_kill_loses_the_shard_that_was_being_written(tmp_path: Path) -> None:
    folder = tmp_path / "latents"

    def killed() -> Iterator[tuple[bytes, bytes]]:
        for number in range(10):
            yield bytes([number]) * BYTES, b"content" * 10**4
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        write_shards(folder, killed(), size=3 * 7 * 10**4)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    shards = opened(folder)
    assert not shards.index.unusable
    keys = [bytes([number]) * BYTES for number in range(10)]
    assert list(contents(shards, keys)) == keys[:9]
    assert len(list(folder.iterdir())) == 4
    remove_partial(tmp_path)
    assert len(list(folder.iterdir())) == 3


def shard_of(folder: Path, entries: dict[bytes, bytes]) -> Path:
    write_shards(folder, iter(entries.items()))
    (path,) = folder.iterdir()
    return path


def test_a_shard_that_is_cut_short_anywhere_is_not_used(tmp_path: Path) -> None:
    path = shard_of(tmp_path, made_up(3))
    content = path.read_bytes()
    lengths = [*range(0, len(content) - 20, 13), *range(len(content) - 20, len(content))]
    damaged = [content[:length] for length in lengths]
    damaged += [content[1:], content[:5] + content[9:], bytes(len(content)), b"", MAGIC]
    damaged.append(b"\xff" * 8 + MAGIC)
    table = content.index(b"\x93NUMPY")
    damaged.append(content[:table] + bytes(len(content) - table - 16) + content[-16:])
    for bad in damaged:
        path.write_bytes(bad)
        index = read_index(tmp_path)
        assert not len(index.keys)
        assert index.unusable == [
            f"data.cache: {path} is cut short or damaged, and is not used: remove it; what it "
            "held is built again"
        ]
    path.write_bytes(content)
    assert len(read_index(tmp_path).keys) == 3


def test_a_shard_of_another_version_is_named(tmp_path: Path) -> None:
    path = shard_of(tmp_path, made_up(3))
    path.write_bytes(path.read_bytes()[:-1] + b"9")
    (line,) = read_index(tmp_path).unusable
    assert line.startswith(f"data.cache: {path} is of another version of FairHuman, and is not")


def test_a_file_that_is_no_shard_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / f"folder{SUFFIX}").mkdir()
    index = read_index(tmp_path)
    assert not len(index.keys)
    (line,) = index.unusable
    assert f"folder{SUFFIX} cannot be read (Is a directory)" in line
    with pytest.raises(OutputError, match=r"^data\.cache: .*notes.txt cannot be read: Not a dir"):
        read_index(tmp_path / "notes.txt")


def test_a_shard_that_goes_while_a_run_reads_is_one_line(tmp_path: Path) -> None:
    entries = made_up(9)
    path = shard_of(tmp_path, entries)
    shards, key = opened(tmp_path), next(key for key in entries if entries[key])
    os.truncate(path, 0)
    fix = "; remove it and start again, and what it held is built again"
    for why in ("it is cut short", "No such file or directory"):
        with pytest.raises(OutputError) as caught:
            shards.read(key)
        assert str(caught.value) == f"data.cache: {path} cannot be read ({why}){fix}"
        path.unlink(missing_ok=True)


def test_a_full_disk_is_one_line_and_leaves_whole_shards(tmp_path: Path) -> None:
    """A limit on the size of files stands in for it: the same call fails, at the same place."""
    entries = {
        hashlib.blake2b(bytes([n]), digest_size=BYTES).digest(): bytes(100 * n) for n in range(60)
    }
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        with pytest.raises(OutputError, match="File too large") as caught:
            write_shards(tmp_path, iter(entries.items()), size=1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert {path.suffix for path in tmp_path.iterdir()} == {SUFFIX}
    shards = opened(tmp_path)
    found = contents(shards, list(entries))
    assert not shards.index.unusable
    assert list(found) == list(entries)[: len(found)]
    assert 40 < len(found) < 60
