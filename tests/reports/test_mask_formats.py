"""A mask is read rightly, or refused because its meaning is not plain: the same everywhere."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fairhuman.common.errors import DataError
from fairhuman.common.images import ImageError, open_mask
from fairhuman.config import Data
from fairhuman.curation.importers.masks import import_masks
from fairhuman.curation.inspection.inspect import View, inspect
from fairhuman.data.dataset import People
from fairhuman.data.records import Reading, load_records

REGION = np.zeros((64, 64), dtype=np.uint8)
REGION[16:48, 16:48] = 1
WANTED = REGION * 255


def coloured(*rgb: int, ground: tuple[int, int, int] = (0, 0, 0)) -> Image.Image:
    return Image.fromarray(np.where(REGION[..., None] == 1, rgb, ground).astype(np.uint8))


def palette(colours: list[int], values: NDArray[np.uint8] = REGION) -> Image.Image:
    image = Image.fromarray(values).convert("P")
    image = Image.frombytes("P", image.size, values.tobytes())
    image.putpalette(colours + [0] * (768 - len(colours)))
    return image


def alpha(grey: NDArray[Any], opacity: NDArray[Any]) -> Image.Image:
    return Image.fromarray(np.dstack([grey, grey, grey, opacity]))


def grey_alpha(grey: int) -> Image.Image:
    return Image.fromarray(np.dstack([REGION * 0 + np.uint8(grey), WANTED]), "LA")


BLACK, WHITE = REGION * 0, REGION * 0 + np.uint8(255)
PARTS = REGION.copy()
PARTS[16:30] *= 2

PLAIN = {
    "white": Image.fromarray(WANTED),
    "one bit": Image.fromarray(WANTED).convert("1"),
    "zero and one": Image.fromarray(REGION),
    "zero and one in colours": coloured(1, 1, 1),
    "class 1 in one channel": coloured(1, 0, 0),
    "palette, dark red": palette([0, 0, 0, 128, 0, 0]),
    "palette, dark grey 1": palette([0, 0, 0, 1, 1, 1]),
    "red": coloured(255, 0, 0),
    "blue": coloured(0, 0, 255),
    "darkest colour of VOC": coloured(64, 0, 0),
    "opaque, colours": alpha(WANTED, WHITE),
    "half transparent everywhere": alpha(WANTED, WHITE // 2),
    "black, region in alpha": alpha(BLACK, WANTED),
    "white, region in alpha": alpha(WHITE, WANTED),
    "alpha of 0 and 1": alpha(WHITE, REGION),
    "white on transparent black": alpha(WANTED, WANTED),
    "black, in grey and alpha": grey_alpha(0),
    "white, in grey and alpha": grey_alpha(255),
    "16 bits, 1": Image.fromarray(REGION.astype(np.uint16)),
    "16 bits, 255": Image.fromarray(REGION.astype(np.uint16) * 255),
    "16 bits, 65535": Image.fromarray(REGION.astype(np.uint16) * 65535),
    "32 bits, 255": Image.fromarray(REGION.astype(np.int32) * 255),
    "float, 1": Image.fromarray(REGION.astype(np.float32)),
    "float, 255": Image.fromarray(REGION.astype(np.float32) * 255),
}

UNCLEAR = {
    "brightest 2": (Image.fromarray(REGION * 2), "2 of 255"),
    "brightest 127": (Image.fromarray(REGION * 127), "127 of 255"),
    "classes 1 and 2": (Image.fromarray(PARTS), "2 of 255"),
    "16 bits, 4095": (Image.fromarray(REGION.astype(np.uint16) * 4095), "4095"),
    "32 bits, most": (Image.fromarray(REGION.astype(np.int32) * (2**31 - 1)), "neither"),
    "below 0": (Image.fromarray(-REGION.astype(np.float32)), "below 0"),
    "not a number": (Image.fromarray(REGION * np.float32("nan")), "NaN"),
    "two colours": (palette([0, 0, 0, 128, 0, 0, 0, 128, 0], PARTS), "more than one colour"),
    "two shades as labels": (
        palette([0, 0, 0, 128, 0, 0, 64, 0, 0], PARTS),
        "more than one colour",
    ),
    "red on white": (coloured(255, 0, 0, ground=(255, 255, 255)), "more than one colour"),
    "transparent everywhere": (alpha(WANTED, BLACK), "transparent everywhere"),
    "grey against alpha": (alpha(WANTED, 255 - WANTED), "contradicts"),
    "photograph": (
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)),
        "more than one colour",
    ),
}


def saved(image: Image.Image, folder: Path, name: str) -> Path:
    path = folder / f"{name.replace(' ', '_')}.{'png' if image.mode != 'F' else 'tiff'}"
    if image.mode == "I":
        path = path.with_suffix(".tiff")
    image.save(path)
    return path


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_mask_is_its_region(name: str, tmp_path: Path) -> None:
    mask = open_mask(saved(PLAIN[name], tmp_path, name))
    assert mask.mode == "L"
    np.testing.assert_array_equal(np.asarray(mask), WANTED)


@pytest.mark.parametrize("name", UNCLEAR)
def test_an_unclear_mask_is_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    image, reason = UNCLEAR[name]
    with pytest.raises(ImageError, match=reason):
        open_mask(saved(image, tmp_path, name))


def test_soft_edges_noise_and_empty_masks_stay_as_they_are(tmp_path: Path) -> None:
    soft = np.tile(np.arange(256, dtype=np.uint8), (64, 1))
    for name, grey in {"soft": soft, "near": WANTED // 51 * 49 + 5, "black": BLACK}.items():
        np.testing.assert_array_equal(
            np.asarray(open_mask(saved(Image.fromarray(grey), tmp_path, name))), grey
        )
    # Soft edges of a colour count in part.
    red = Image.fromarray(np.dstack([soft, soft * 0, soft * 0]))
    np.testing.assert_array_equal(np.asarray(open_mask(saved(red, tmp_path, "red"))), soft)
    for quality in (60, 90):
        Image.fromarray(WANTED).convert("RGB").save(tmp_path / "a.jpg", quality=quality)
        read = np.asarray(open_mask(tmp_path / "a.jpg")).astype(int)
        assert np.abs(read - WANTED).max() < 30


def test_16_bits_of_colour_that_look_black_in_8_are_refused(tmp_path: Path) -> None:
    # A PNG of 16 bits per channel, by hand: Pillow writes none.
    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    def png(white: int) -> bytes:
        values = np.repeat((REGION * np.uint16(white))[..., None], 3, axis=2).astype(">u2")
        rows = b"".join(b"\0" + row.tobytes() for row in values)
        head = struct.pack(">IIBBBBB", 64, 64, 16, 2, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            (chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
        )

    (tmp_path / "deep.png").write_bytes(png(255))
    with pytest.raises(ImageError, match="of 65535"):
        open_mask(tmp_path / "deep.png")
    (tmp_path / "deep.png").write_bytes(png(65535))
    np.testing.assert_array_equal(np.asarray(open_mask(tmp_path / "deep.png")), WANTED)


def test_training_import_and_inspect_read_masks_the_same(tmp_path: Path) -> None:
    root, images, masks = tmp_path / "ds", tmp_path / "images", tmp_path / "masks"
    for folder in (root, images, masks):
        folder.mkdir()
    cases = {name: PLAIN[name] for name in ("red", "zero and one", "black, region in alpha")}
    cases["unclear"] = UNCLEAR["two colours"][0]
    lines = []
    for name, mask in cases.items():
        file = saved(mask, masks, name).name
        photo = np.random.default_rng(len(file)).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(photo).save(root / file)
        Image.fromarray(photo).save(images / file)
        saved(mask, root, f"mask {name}")
        lines.append({"file_name": file, "text": name, "face_mask": f"mask_{file}", "hands": []})
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))

    records, problems = load_records(root, Reading(("face", "hand")), on_error="skip")
    assert [record.text for record in records] == [name for name in cases if name != "unclear"]
    assert "face_mask" in problems[0].message
    data = Data(root=str(root), resolution=64)
    people = People(records, ["face", "hand"], data, 0, 8)
    shares = [float(people[0, index].masks[0, 0].mean()) for index in range(len(records))]
    np.testing.assert_allclose(shares, 0.25)

    looked = inspect(root, View.plain(root, 64)).by_kind()["unusable"]
    assert "unclear.png" in {sample.name for sample in looked}
    assert not {"red.png", "zero_and_one.png"} & {sample.name for sample in looked}

    with pytest.raises(DataError, match="more than one colour"):
        import_masks(images, tmp_path / "out", face_masks=masks)
    (masks / "unclear.png").unlink()
    import_masks(images, tmp_path / "out", face_masks=masks)
    for written in (tmp_path / "out" / "masks" / "face").glob("*.png"):
        np.testing.assert_array_equal(np.asarray(Image.open(written)), WANTED)
