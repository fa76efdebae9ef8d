"""Aspect-ratio buckets: which sizes there are, and which image is trained in which."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fairhuman.config import Data
from fairhuman.data.buckets import frame, sizes
from fairhuman.data.dataset import People, collate
from fairhuman.data.records import Reading, load_records


@pytest.mark.parametrize(("resolution", "step"), [(1024, 64), (1024, 8), (512, 32), (64, 8)])
@pytest.mark.parametrize("aspect", [1.0, 1.5, 2.0, 4.0])
def test_buckets_keep_the_area_the_step_and_the_aspect(
    resolution: int, step: int, aspect: float
) -> None:
    found = sizes(resolution, step, aspect)
    assert (resolution, resolution) in found
    assert {(height, width) for width, height in found} == set(found)
    for width, height in found:
        assert width % step == height % step == 0
        assert max(width, height) <= aspect * min(width, height)
        # No more than the square, and less by no more than one step of the longer side.
        assert 0 <= resolution**2 - width * height < min(width, height) * step


def test_sdxl_s_own_buckets_are_found() -> None:
    trained = {(1024, 1024), (1152, 896), (896, 1152), (1216, 832), (832, 1216), (1344, 768)}
    assert trained <= set(sizes(1024, 64, 2.0))


def test_an_image_has_the_nearest_bucket_and_loses_little_to_the_crop() -> None:
    data = Data(root="-", resolution=1024, buckets=True)
    assert frame((640, 480), data) == (1152, 896)
    assert frame((480, 640), data) == (896, 1152)
    assert frame((77, 77), data) == (1024, 1024)
    for width in range(300, 601, 7):
        across, down = frame((width, 300), data)
        assert abs(math.log(width / 300 * down / across)) < 0.1
    assert frame((4000, 100), data) == max(sizes(1024, 64, 2.5), key=lambda s: s[0] / s[1])
    assert frame((640, 480), data.model_copy(update={"buckets": False})) == (1024, 1024)


def test_samples_have_their_bucket_s_shape_and_masks_that_follow(tmp_path: Path) -> None:
    rows = []
    for name, (width, height) in {"a.png": (300, 160), "b.png": (310, 165)}.items():
        values = np.zeros((height, width, 3), dtype=np.uint8)
        values[20:60, 90:150] = 255
        Image.fromarray(values).save(tmp_path / name)
        rows.append({"file_name": name, "text": "x", "faces": [[90, 20, 60, 40]], "hands": []})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = Data(
        root=str(tmp_path), resolution=128, buckets=True, bucket_step=8, mask_margin=0, flip=True
    )
    records, _ = load_records(tmp_path, Reading(("face", "hand")))
    people = People(records, ["face", "hand"], data, seed=0, cell=8)
    batch = collate([people[epoch, index] for epoch in range(4) for index in range(2)])
    width, height = frame((300, 160), data)
    assert batch.pixels is not None
    assert batch.pixels.shape == (8, 3, height, width)
    assert batch.masks.shape == (8, 2, height // 8, width // 8)
    assert batch.time_ids[:, 4:].tolist() == [[height, width]] * 8
    white = ((batch.pixels.mean(1) + 1) / 2).unfold(1, 8, 8).unfold(2, 8, 8).mean((3, 4))
    assert (white - batch.masks[:, 0]).abs().mean() < 0.01
    assert batch.masks[:, 0].sum() > 10
