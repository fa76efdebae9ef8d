"""What a crop shows: no region from outside it, and no more memory than it needs."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fairhuman.config import Data
from fairhuman.curation.inspection.inspect import View, inspect
from fairhuman.data.dataset import People
from fairhuman.data.records import Reading, load_records
from fairhuman.data.regions import Box, cut, rasterize
from fairhuman.data.transform import Placement, grey


def people(root: Path, size: tuple[int, int], data: dict[str, object], **row: object) -> People:
    Image.effect_noise(size, 80).convert("RGB").save(root / "a.png")
    fields = {"file_name": "a.png", "text": "x", "faces": [], "hands": []} | row
    (root / "metadata.jsonl").write_text(json.dumps(fields))
    records, _ = load_records(root, Reading(("face", "hand")))
    return People(records, ["face", "hand"], Data(root=str(root), **data), 0, 8)  # type: ignore[arg-type]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("as_mask", [False, True])
def test_a_region_outside_the_crop_has_no_area(tmp_path: Path, flip: bool, as_mask: bool) -> None:
    # The crop shows columns 64 to 192.
    for x, width in ((30, 30), (34, 30), (192, 20), (0, 10)):
        row: dict[str, object] = {"faces": [[x, 40, width, 30]]}
        if as_mask:
            mask = np.zeros((128, 256), dtype=np.uint8)
            mask[40:70, x : x + width] = 255
            Image.fromarray(mask).save(tmp_path / "m.png")
            row = {"face_mask": "m.png"}
        found = people(tmp_path, (256, 128), {"resolution": 128, "flip": flip}, **row)
        for epoch in range(4):
            assert float(found[epoch, 0].masks[0, 0].sum()) == 0


@pytest.mark.parametrize("seed", range(20))
def test_the_margin_is_that_of_what_is_seen(tmp_path: Path, seed: int) -> None:
    """The widened mask is the maximum filter of the seen one."""
    noise = np.random.default_rng(seed)
    margin = 8
    box = [int(n) for n in (*noise.integers(0, 90, 2), *noise.integers(8, 38, 2))]
    row = {"faces": [[2 * n for n in box]]}
    found = people(
        tmp_path, (256, 256), {"resolution": 128, "mask_margin": margin, "crop": "random"}, **row
    )
    placement = found.placement(found.records[0], 0)
    seen = rasterize(placement.boxes(found.records[0].regions["face"].boxes), (128, 128)) > 0
    rows, columns = np.nonzero(seen)
    wide = np.zeros((128, 128))
    if len(rows):
        top, left = max(0, rows.min() - margin), max(0, columns.min() - margin)
        wide[top : rows.max() + 1 + margin, left : columns.max() + 1 + margin] = 1
    cells = wide.reshape(16, 8, 16, 8).mean(axis=(1, 3))
    np.testing.assert_allclose(found[0, 0].masks[0, 0].numpy(), cells, atol=1e-6)


def test_cut_keeps_what_is_inside_bit_for_bit() -> None:
    inside: list[Box] = [(0.1, 0.2, 0.3, 0.7), (3.3, 4.4, 5.5, 59.6)]
    assert cut(inside, (64, 64)) == inside
    assert cut([(-5.0, -5.0, 5.0, 70.0), (64.0, 0.0, 9.0, 9.0)], (64, 64)) == []
    assert cut([(-5.0, 60.0, 10.0, 10.0)], (64, 64)) == [(0.0, 60.0, 5.0, 4.0)]


@pytest.mark.parametrize("crop", ["center", "random", "regions"])
@pytest.mark.parametrize("size", [(20_000, 4), (4, 20_000), (60_000, 1)])
def test_a_strip_takes_no_memory_to_speak_of(
    tmp_path: Path, crop: str, size: tuple[int, int]
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    mask = Image.new("L", size, 255)
    mask.save(tmp_path / "m.png")
    data = {"resolution": 1024, "crop": crop, "flip": True}
    found = people(tmp_path, size, data, face_mask="m.png", hands=[[0, 0, size[0], size[1]]])
    batch = found[0, 0]
    assert batch.pixels is not None
    assert batch.pixels.shape == (1, 3, 1024, 1024)
    assert float(batch.masks.mean()) == 1
    looked = inspect(tmp_path, View(found.data, train_view=True)).by_kind()["enlarged"]
    assert "are enlarged" in next(f for f in looked[0].findings if f.kind == "enlarged").text
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # KiB


def test_resizing_a_part_gives_that_part_of_the_whole_resized() -> None:
    noise = np.random.default_rng(0)
    for draw in range(60):
        width, height = (int(n) for n in noise.integers(20, 400, 2))
        # Without black and white: Pillow clips between its two passes, whose order varies.
        image = Image.fromarray(noise.integers(90, 166, (height, width, 3), dtype=np.uint8))
        rng = np.random.default_rng(draw)
        placement = Placement.draw((width, height), (64, 96), rng, crop="random", flip=True)
        whole = image.resize(placement.resized, Image.Resampling.LANCZOS)
        if placement.flip:
            whole = whole.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        corner = (placement.left, placement.top, placement.left + 64, placement.top + 96)
        difference = grey(placement.image(image)) - grey(whole.crop(corner))
        assert np.abs(difference).max() <= 2.01 / 255  # both passes round
