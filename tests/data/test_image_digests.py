"""Digests of images: those of the files' bytes, and read again only where a file has changed."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
from pathlib import Path

import pytest
from ranks import run_ranks
from test_index import age, config_of, spoil

from fairhuman.data.index.digests import image_digests
from fairhuman.data.index.load import load
from fairhuman.data.place import BESIDE


def digests(root: Path, check: str = "full") -> dict[str, bytes]:
    records, _ = load(config_of(root, check=check))
    return dict(image_digests(records, check))


def plainly(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): hashlib.blake2b(
            path.read_bytes(), digest_size=20
        ).digest()
        for path in sorted(root.rglob("*.png"))
        if "mask" not in path.name
    }


@pytest.fixture
def root(people: Path, tmp_path: Path) -> Path:
    copied = shutil.copytree(people, tmp_path / "people", ignore=shutil.ignore_patterns(BESIDE))
    age(copied)
    return copied


def expected(root: Path) -> dict[str, bytes]:
    found = plainly(root)
    return {record.id: found[record.id] for record in load(config_of(root))[0]}


def test_they_are_those_of_the_bytes_also_when_they_are_known(root: Path) -> None:
    assert digests(root) == digests(root) == expected(root)


def test_a_known_file_is_not_read_again(root: Path) -> None:
    before = digests(root)
    for name in before:
        spoil(root / name)
    assert digests(root) == before
    (root / BESIDE / "digests.arrow").unlink()
    assert set(digests(root).values()).isdisjoint(before.values())


def test_one_that_has_changed_or_is_new_is_read(root: Path) -> None:
    before = digests(root)
    changed, same = list(before)[:2]
    told = (root / changed).stat()
    (root / changed).write_bytes((root / same).read_bytes())
    assert digests(root, "trust") == before
    found = digests(root)
    assert found == before | {changed: before[same]}
    os.utime(root / changed, ns=(told.st_atime_ns, told.st_mtime_ns - 1))
    assert digests(root) == found


def test_what_has_just_changed_is_not_believed(root: Path) -> None:
    name = next(iter(digests(root)))
    path = root / name
    path.write_bytes(path.read_bytes() + b"1")
    first = digests(root)[name]
    told = path.stat()
    path.write_bytes(path.read_bytes()[:-1] + b"2")
    os.utime(path, ns=(told.st_atime_ns, told.st_mtime_ns))  # within the clock's tick
    assert digests(root)[name] != first


@pytest.mark.parametrize("content", [b"", b"no table", b"ARROW1\0\0"])
def test_a_damaged_table_is_made_again(root: Path, content: bytes) -> None:
    found = digests(root)
    (root / BESIDE / "digests.arrow").write_bytes(content)
    assert digests(root) == found == digests(root)


def on_ranks(root: Path) -> dict[str, bytes]:
    return digests(root)


def test_ranks_share_the_reading_and_agree(root: Path) -> None:
    told = expected(root)
    for ranks in (3, 1):
        assert run_ranks(functools.partial(on_ranks, root), ranks) == [told] * ranks
    for name in told:
        spoil(root / name)
    assert run_ranks(functools.partial(on_ranks, root), 2) == [told] * 2
