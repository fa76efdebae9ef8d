"""Data folders that hypothesis makes up: each is read, or refused with the place; nothing else.

Run by `make fuzz`, 2,000 folders of a fixed seed (FUZZ_FOLDERS and FUZZ_SEED change them). What
fails is kept in tests/fuzz/examples and tried first the next time.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from hypothesis.database import DirectoryBasedExampleDatabase
from PIL import Image, ImageCms

from fairhuman.common.errors import DataError
from fairhuman.config import Data
from fairhuman.curation.inspection.inspect import View, inspect
from fairhuman.curation.inspection.page import render
from fairhuman.data.dataset import People
from fairhuman.data.records import Reading, load_records

FOLDERS = int(os.environ.get("FUZZ_FOLDERS", "2000"))
SEED = int(os.environ.get("FUZZ_SEED", "18"))
SECONDS, BYTES = 2.0, 500e6
NAMES = [
    "a.png",
    "b.jpg",
    "c.tiff",
    "d.webp",
    "e.gif",
    "f.bmp",
    "g.tga",
    "h.ppm",
    "i.jp2",
    "j.avif",
]

Folder = tuple[dict[str, bytes], bytes]


@cache
def pictures() -> list[bytes]:
    """Return files of every format and mode, with and without EXIF and ICC profiles."""
    noise = np.random.default_rng(0)
    rgb = Image.fromarray(noise.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    modes = [rgb.convert(mode) for mode in ("RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "LAB")]
    deep = noise.integers(0, 65536, (24, 32))
    modes += [Image.fromarray(deep.astype(kind)) for kind in (np.uint16, np.int32, np.float32)]
    modes += [Image.new("RGB", (2000, 1)), Image.new("L", (1, 1)), Image.new("L", (32, 24), 1)]
    masks = (np.asarray(rgb.convert("L")) > 128) * np.uint8(255)
    modes += [Image.fromarray(masks), Image.fromarray(np.dstack([masks * 0] * 3 + [masks]))]
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    found = []
    for kind in ("PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP", "TGA", "PPM", "JPEG2000", "AVIF"):
        for image in modes:
            for extra in ({}, {"exif": exif, "icc_profile": profile}):
                out = io.BytesIO()
                try:
                    image.save(out, kind, **extra)
                except (OSError, KeyError, ValueError):  # not a mode of this format
                    continue
                found.append(out.getvalue())
    found += [b"", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n", b"\0" * 64]
    return found


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """Draw a picture, often cut short, with bits flipped or bytes written over."""
    data = bytearray(draw(st.sampled_from(pictures())))
    for change in draw(st.lists(st.sampled_from(["cut", "flip", "write", "grow"]), max_size=4)):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        # The head is where meaning is.
        at = at % 200 if draw(st.booleans()) else at
        if change == "cut":
            del data[at:]
        elif change == "flip" and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif change == "write":
            data[at : at + 4] = draw(st.sampled_from([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"]))
        elif change == "grow":
            data[at:at] = draw(st.binary(max_size=16))
    return bytes(data)


names = st.one_of(
    st.sampled_from(NAMES),
    st.sampled_from(
        ["", ".", "..", "/", "../a.png", "/etc/passwd", "x" * 300, "x\0", "\ud83d", "."]
    ),
    st.text(max_size=8),
)
numbers: st.SearchStrategy[Any] = st.one_of(
    st.integers(-5, 40),
    st.floats(),
    st.sampled_from([True, None, "1", 10**400, -(10**30), 1e308, 0.5, 5e-324]),
)
boxes = st.one_of(
    st.lists(st.lists(numbers, min_size=3, max_size=5), max_size=4),
    st.just([[2, 2, 12, 12]]),
    st.just([]),
    st.sampled_from([None, 7, "x", {}, [[]], [[[1, 2, 3, 4]]], [[1, 1, 9, 9]] * 1000]),
)
texts = st.one_of(
    st.text(max_size=20), st.sampled_from([None, "", 3, "\ud83d", "\u2028", "x" * 9999])
)


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    """Draw a line of metadata.jsonl."""
    if draw(st.integers(0, 9)) == 0:
        raw = [
            b"[" * 5000,
            b"1" * 5000,
            b"{",
            b"null",
            b'{"a": 1, "a": 2}',
            b"\xff\xfe",
            b"\xef\xbb\xbf",
        ]
        return draw(st.one_of(st.sampled_from(raw), st.binary(max_size=30)))
    row: dict[str, Any] = {"file_name": draw(names), "text": draw(texts)}
    for region in ("face", "hand"):
        if draw(st.booleans()):
            row[f"{region}s"] = draw(boxes)
        else:
            row[f"{region}_mask"] = draw(names)
    return json.dumps(row).encode()


@st.composite
def folders(draw: st.DrawFn) -> Folder:
    """Draw the files of a data set's folder and its metadata.jsonl."""
    found = {name: draw(files()) for name in draw(st.lists(st.sampled_from(NAMES), max_size=4))}
    return found, b"\n".join(draw(st.lists(lines(), min_size=1, max_size=5)))


def use(root: Path, data: Data) -> None:
    """Do with a data set what a trainer and `inspect` do; raise DataError where they refuse it."""
    regions = ["face", "hand"]
    reading = Reading(regions, unannotated=data.unannotated, outside=data.outside)
    records, _ = load_records(root, reading, on_error=data.on_error)
    people = People(records, regions, data, 0, 8)
    for index in range(len(people)):
        batch = people[1, index]
        assert batch.pixels is not None
        assert bool(batch.pixels.isfinite().all())
        assert bool(((batch.masks >= 0) & (batch.masks <= 1)).all())


def check(folder: Folder) -> None:
    """Write a folder and use it, within the bounds of time and memory."""
    content, metadata = folder
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        for name, data in content.items():
            (root / name).write_bytes(data)
        (root / "metadata.jsonl").write_bytes(metadata)
        settled = Data(root=place, resolution=64, unannotated="absent", on_error="skip", flip=True)
        before, began = _memory("VmRSS"), time.process_time()
        refused = []
        for config in (settled, settled.model_copy(update={"on_error": "fail", "crop": "regions"})):
            try:
                use(root, config)
            except DataError as error:
                refused.append(str(error))
        with suppress(DataError):  # it names no image
            render(inspect(root, View.plain(root, 64)), 10)
        assert all(len(said) < 100_000 for said in refused)
        assert time.process_time() - began < SECONDS
        assert _memory("VmHWM") - before < BYTES


def _memory(field: str) -> int:
    """Return a field of this process's memory in bytes; asking for VmRSS resets the peak."""
    if field == "VmRSS":
        Path("/proc/self/clear_refs").write_text("5")
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"/proc/self/status names no {field}")


@seed(SEED)
@settings(
    max_examples=FOLDERS,
    deadline=None,
    database=DirectoryBasedExampleDatabase(Path(__file__).with_name("examples")),
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
@given(folders())
def test_every_data_folder_is_read_or_refused(folder: Folder) -> None:
    check(folder)
