"""Which files are opened as images, and how: by a list, upright, within a limit."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fairhuman
from fairhuman.common.images import (
    MAX_PIXELS,
    SUFFIXES,
    UNOPENABLE,
    ImageError,
    open_image,
    open_mask,
    upright_size,
)

MARKED = np.zeros((20, 40, 3), dtype=np.uint8)
MARKED[:10, :20] = 255  # the upper left corner of the picture as it is to be seen
STORED = {1: [], 2: [0], 3: [3], 4: [1], 5: [5], 6: [2], 7: [6], 8: [4]}
"""How the picture is stored under each orientation: Pillow's transpositions."""


def test_postscript_and_the_like_are_never_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n"
    for name in ("a.jpg", "a.png", "a.eps", "a.tga"):
        (tmp_path / name).write_bytes(script)
        for read in (open_image, open_mask, upright_size):
            with pytest.raises(ImageError):
                read(tmp_path / name)
    for kind in ("ICO", "PCX", "SGI", "DDS", "PDF"):
        Image.new("RGB", (16, 16)).save(tmp_path / "b.png", kind)
        with pytest.raises(ImageError, match="none of JPEG"):
            open_image(tmp_path / "b.png")
    assert not (tmp_path / "ran").exists()


def test_no_other_module_opens_images() -> None:
    package = Path(fairhuman.__file__).parent
    found = {p.name for p in package.rglob("*.py") if "Image.open(" in p.read_text()}
    # And a mask that the page of `review` has sent: a PNG alone, of its image's size.
    assert found == {"imagefiles.py", "pictures.py"}


@pytest.mark.parametrize("suffix", sorted(SUFFIXES - {".avifs"}))
def test_every_suffix_on_the_list_is_opened(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    kind = {".mpo": "MPO", ".pbm": "PPM", ".pgm": "PPM", ".dib": "DIB"}.get(suffix)
    image = Image.fromarray(MARKED)
    image.convert({".pbm": "1", ".pgm": "L"}.get(suffix, "RGB")).save(path, kind)
    assert open_image(path).size == upright_size(path) == (40, 20)
    assert np.abs(np.asarray(open_image(path)).astype(int) - MARKED).mean() < 12
    assert suffix not in UNOPENABLE


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff", "avif"])
def test_every_orientation_is_made_upright(orientation: int, suffix: str, tmp_path: Path) -> None:
    image = Image.fromarray(MARKED)
    for turn in STORED[orientation]:
        image = image.transpose(Image.Transpose(turn))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    image.save(path, exif=exif, quality=95)
    read = open_image(path)
    assert read.size == upright_size(path) == open_mask(path).size == (40, 20)
    assert np.abs(np.asarray(read).astype(int) - MARKED).mean() < 12


def jpeg(entries: list[tuple[int, int, int, int]]) -> bytes:
    tiff = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries))
    tiff += b"".join(struct.pack("<HHII", *entry) for entry in entries) + b"\0\0\0\0"
    out = io.BytesIO()
    Image.new("RGB", (64, 32)).save(out, "JPEG", exif=tiff)
    return out.getvalue()


@pytest.mark.parametrize("tag", [0x132, 0x8769, 0x8825, 0x14A, 0x201, 0x202, 0x11A])
@pytest.mark.parametrize("kind", [2, 5, 11, 12])
def test_exif_that_pillow_cannot_write_is_read(tag: int, kind: int, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg([(0x112, 3, 1, 6), (tag, kind, 1, 8)]))
    try:
        size = open_image(tmp_path / "a.jpg").size
    except ImageError:  # Pillow reads some while it opens the file
        return
    assert size == (32, 64)
    (tmp_path / "a.jpg").write_bytes(jpeg([(0x112, kind, 1, 9)]))
    assert open_image(tmp_path / "a.jpg").size == (64, 32)


def bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [9460, 14_000, 60_000])
def test_bombs_are_refused_before_they_are_decoded(side: int, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(bomb(side, side))
    for read in (open_image, open_mask, upright_size):
        with pytest.raises(ImageError, match=f"more than {MAX_PIXELS:,} pixels"):
            read(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tiff", "mpo"])
def test_of_several_pictures_the_first_is_read(suffix: str, tmp_path: Path) -> None:
    first, second = Image.fromarray(MARKED), Image.new("RGB", (40, 20), (0, 0, 255))
    first.save(tmp_path / f"a.{suffix}", save_all=True, append_images=[second])
    read = open_image(tmp_path / f"a.{suffix}")
    assert np.abs(np.asarray(read).astype(int) - MARKED).mean() < 12


def test_what_is_no_file_is_named_and_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nothing")
    (tmp_path / "circle.png").symlink_to(tmp_path / "circle.png")
    for name, reason in {
        "pipe.png": "not a file",
        "folder.png": "not a file",
        "dangling.png": "no such file",
        "circle.png": "cannot be read",
        "x" * 300 + ".png": "cannot be read",
        "a\0b.png": "no file can have this name",
        "a\ud83d.png": "no such file|no file can have this name",
    }.items():
        with pytest.raises(ImageError, match=reason):
            open_image(tmp_path / name)
