"""WebDataset's tars: the files of a sample follow each other and share their name up to a dot.

Of a sample `KEY`:

| member | is |
| --- | --- |
| `KEY.jpg`, or another of the pictures' suffixes | the image |
| `KEY.json` | the row |
| `KEY.txt`, `KEY.caption` | `text`, where the row has none |
| `KEY.face.png`, `KEY.face_mask.png` | `face_mask`, and so for every region |
| `KEY.conditioning_image.png` | `conditioning_image` |

Other members are left alone. Nothing is unpacked: a picture is read from its place in the tar.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from fairhuman.common.error_text import reason
from fairhuman.common.errors import DataError
from fairhuman.common.images import SUFFIXES, UNOPENABLE
from fairhuman.common.json_text import JsonError, half_character, parse
from fairhuman.common.quoting import shown
from fairhuman.data.stores.member import Location
from fairhuman.data.stores.scan import Copies, Row

PLAIN = ".image"
"""The suffix of an image whose file had none of the pictures' suffixes."""
_CAPTIONS = ("txt", "caption")
_BLOCK = 512
_LONGEST_TEXT = 2**24
"""Of a .json or .txt, in bytes."""


class _Member(NamedTuple):
    name: str
    key: str
    """Its path up to the first dot of its name."""
    ending: str
    """What follows that dot."""
    offset: int
    length: int


class TarScanner:
    """Reads WebDataset's tars."""

    kind = "tar"

    def keys(self, path: Path) -> None:
        """Return None: each sample has its own keys."""

    def copied_bytes(self, path: Path) -> int:
        """Return 0: a tar is not compressed."""
        return 0

    def rows(self, path: Path, shard: str, copies: Copies) -> Iterator[Row]:
        """Yield the samples of a tar.

        Raises:
            DataError: it is no tar, compressed, cut short, or has a name in it that it may not.
        """
        seen: set[str] = set()
        try:
            with path.open("rb") as file:
                members = _members(path, file)
                for key, group in groupby(members, key=lambda member: member.key):
                    if key in seen:
                        raise DataError(
                            f"{path}: the members of {shown(key)} do not follow each other: pack "
                            "the tar again, each sample's files together"
                        )
                    seen.add(key)
                    yield _row(list(group), shard, file)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {reason(error)}") from None


def _members(path: Path, file: BinaryIO) -> Iterator[_Member]:
    """Yield the plain files of a tar, having checked it to its end."""
    size, end = os.fstat(file.fileno()).st_size, 0
    names: set[str] = set()
    try:
        # Of its own descriptor: what reads a member's text meanwhile must not move it.
        with tarfile.open(path, "r:") as tar:
            while info := tar.next():
                tar.members = []  # type: ignore[attr-defined]  # it would keep every header
                length = info.size if info.isreg() else 0
                end = info.offset_data + -(-length // _BLOCK) * _BLOCK
                if info.offset_data + length > size:
                    raise DataError(_short(path, info.name))
                _check_name(path, info, names)
                name = PurePosixPath(info.name)
                if not info.isreg() or name.name.startswith("."):
                    continue
                stem, _, ending = name.name.partition(".")
                key = (name.parent / stem).as_posix()
                yield _Member(info.name, key, ending, info.offset_data, info.size)
    except tarfile.TarError as error:
        with path.open("rb") as head:
            packed = head.read(6).startswith(
                (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
            )
        fix = "uncompress it: its samples are read at random" if packed else "copy it here again"
        raise DataError(f"{path}: cannot be read as a tar ({reason(error)}): {fix}") from None
    file.seek(end)
    if file.read(_BLOCK) != bytes(_BLOCK):
        raise DataError(_short(path, f"byte {end}"))


def _short(path: Path, place: str) -> str:
    return f"{path}: is cut short or damaged at {shown(place)}: copy it here again"


def _check_name(path: Path, info: tarfile.TarInfo, names: set[str]) -> None:
    name = PurePosixPath(info.name)
    if name.is_absolute() or ".." in name.parts:
        problem = "leads out of the tar: pack it again with names relative to its folder"
    elif info.isdir():
        return
    elif not info.isreg() or info.issparse():
        problem = "is no plain file: pack the tar again with the files themselves (tar -h)"
    elif info.name in names:
        problem = "is in the tar twice: pack it again with each name once"
    elif half_character(info.name):
        problem = "is not UTF-8: pack it again with another name"
    else:
        names.add(info.name)
        return
    raise DataError(f"{path}: the member {shown(info.name)} {problem}")


def _row(members: list[_Member], shard: str, file: BinaryIO) -> Row:
    label = members[0].key
    row: dict[str, Any] = {}
    texts: dict[str, str] = {}
    pictures: dict[str, str] = {}
    try:
        for member in members:
            if member.ending.lower() == "json":
                row = _object(member, file)
            elif member.ending.lower() in _CAPTIONS:
                texts[member.ending.lower()] = _text(member, file).strip()
            elif key := _picture_key(member.ending):
                if key in pictures:
                    raise _SampleError(f"has two pictures for {key!r}: remove {member.name}")
                location = Location(member.offset, member.length, shard, member.name)
                pictures[key] = str(location)
                if key == "image":
                    texts["file_name"] = f"{shard}/{member.name}"
        if "image" not in pictures:
            raise _SampleError("holds no image (KEY.jpg, or another picture's suffix)")
    except _SampleError as error:
        return Row(label, {}, str(error))
    for ending in _CAPTIONS:
        if ending in texts:
            texts.setdefault("text", texts.pop(ending))
    return Row(label, texts | row | pictures)


def _picture_key(ending: str) -> str | None:
    """Return the key of the picture that a member is; None if it is none."""
    kind, _, suffix = ending.rpartition(".")
    if f".{suffix.lower()}" not in SUFFIXES | UNOPENABLE | {PLAIN}:
        return None
    if not kind:
        return "image"
    return kind if kind == "conditioning_image" or kind.endswith("_mask") else f"{kind}_mask"


class _SampleError(Exception):
    """What is wrong with one sample."""


def _object(member: _Member, file: BinaryIO) -> dict[str, Any]:
    try:
        found = parse(_content(member, file), lenient=True)
    except JsonError as error:
        raise _SampleError(f"{member.name}: {error}") from None
    if not isinstance(found, dict):
        raise _SampleError(f"{member.name}: must be a JSON object")
    return found


def _text(member: _Member, file: BinaryIO) -> str:
    try:
        return _content(member, file).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise _SampleError(f"{member.name}: is not UTF-8") from None


def _content(member: _Member, file: BinaryIO) -> bytes:
    if member.length > _LONGEST_TEXT:
        raise _SampleError(f"{member.name}: is larger than {_LONGEST_TEXT >> 20} MiB")
    return os.pread(file.fileno(), member.length, member.offset)
