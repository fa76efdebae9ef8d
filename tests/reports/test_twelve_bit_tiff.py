"""A TIFF of 12 bits per pixel is as bright as it was stored, as an image and as a mask."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from fairhuman.common.images import open_image, open_mask


def write_tiff(path: Path, values: list[int]) -> None:
    """Write one row of grey pixels of 12 bits, two in three bytes."""
    pairs = zip(values[::2], values[1::2], strict=True)
    data = b"".join(((a << 12) | b).to_bytes(3, "big") for a, b in pairs)
    tags = [(256, len(values)), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1),
            (278, 1), (279, len(data))]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    start = 8 + len(data) + len(data) % 2
    head = struct.pack("<2sHI", b"II", 42, start) + data.ljust(start - 8, b"\0")
    path.write_bytes(head + struct.pack("<H", len(tags)) + entries + bytes(4))


def test_twelve_bits_fill_the_range(tmp_path: Path) -> None:
    values = [0, 4095, 2048, 16]
    write_tiff(tmp_path / "a.tif", values)
    expected = [value * 255 / 4095 for value in values]
    for read in (open_image, open_mask):
        found = np.asarray(read(tmp_path / "a.tif").convert("L"))[0].tolist()
        assert found == pytest.approx(expected, abs=1)
