"""Pictures with an ICC profile are read in sRGB."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from fairhuman.common.images import open_image, open_mask

# Columns of Display P3's primaries, adapted to D50 (its profile, "Display P3.icc").
P3 = {
    b"rXYZ": (0.51512, 0.24120, -0.00105),
    b"gXYZ": (0.29198, 0.69225, 0.04189),
    b"bXYZ": (0.15710, 0.06657, 0.78407),
}
SRGB = np.array(
    [[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]]
)


def p3_profile() -> bytes:
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for i in range(struct.unpack(">I", data[128:132])[0]):
        tag, at, _ = struct.unpack(">4sII", data[132 + 12 * i : 144 + 12 * i])
        if tag in P3:
            data[at + 8 : at + 20] = b"".join(struct.pack(">i", round(v * 65536)) for v in P3[tag])
    return bytes(data)


def in_srgb(rgb: tuple[int, int, int]) -> np.ndarray:
    """Convert a P3 colour by the formulas, in float64."""
    value = np.array(rgb) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    light = np.linalg.solve(SRGB, np.array(list(P3.values())).T @ linear).clip(0, 1)
    curve = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return curve * 255


@pytest.mark.parametrize("rgb", [(200, 80, 60), (40, 160, 90), (128, 128, 128), (250, 250, 10)])
@pytest.mark.parametrize("form", ["png", "jpg", "tiff", "webp", "palette", "alpha"])
def test_a_p3_picture_is_read_in_srgb(tmp_path: Path, rgb: tuple[int, int, int], form: str) -> None:
    image = Image.new("RGB", (32, 32), rgb)
    words = {"lossless": True} if form == "webp" else {"quality": 100} if form == "jpg" else {}
    if form == "palette":
        image = image.quantize(4)
    if form == "alpha":
        image.putalpha(255)
    path = tmp_path / f"a.{form if form not in ('palette', 'alpha') else 'png'}"
    image.save(path, icc_profile=p3_profile(), **words)
    read = open_image(path)
    assert np.abs(np.array(read.getpixel((5, 5))) - in_srgb(rgb)).max() < 3
    assert "icc_profile" not in read.info  # or it would be converted twice once saved


def test_srgb_changes_nothing_and_masks_are_not_converted(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(pixels).save(tmp_path / "a.png", icc_profile=srgb)
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "a.png")), pixels)
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(np.dstack([grey] * 3)).save(tmp_path / "m.png", icc_profile=p3_profile())
    np.testing.assert_array_equal(np.asarray(open_mask(tmp_path / "m.png")), grey)


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "CMYK", "I;16"])
@pytest.mark.parametrize("kind", ["cut", "noise", "another space", "flipped"])
def test_a_profile_that_says_nothing_is_ignored(tmp_path: Path, mode: str, kind: str) -> None:
    good = p3_profile()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    profile = {
        "cut": good[:150],
        "noise": np.random.default_rng(0).bytes(600),
        "another space": lab,
        "flipped": good[:36] + b"xxxx" + good[40:],
    }[kind]
    image = Image.new(mode, (8, 8), 100 * 257 if mode == "I;16" else None)
    plain, marked = io.BytesIO(), io.BytesIO()
    image.save(plain, "tiff")
    image.save(marked, "tiff", icc_profile=profile)
    (tmp_path / "a.tiff").write_bytes(plain.getvalue())
    (tmp_path / "b.tiff").write_bytes(marked.getvalue())
    first, second = open_image(tmp_path / "a.tiff"), open_image(tmp_path / "b.tiff")
    assert first.tobytes() == second.tobytes()


def test_a_grey_picture_follows_the_curve_of_its_profile(tmp_path: Path) -> None:
    Image.new("L", (8, 8), 100).save(tmp_path / "a.png", icc_profile=p3_profile())
    assert open_image(tmp_path / "a.png").getpixel((0, 0)) == (100, 100, 100)  # sRGB's own curve
