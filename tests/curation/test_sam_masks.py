"""`fairhuman annotate --sam`: which masks are taken, where they end up, what is counted.

What segments is a SAM of transformers with tiny random weights, or one that tells colours apart.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from small_sam import save_sam
from square_detector import SquareDetector

from fairhuman.cli import main
from fairhuman.common.errors import UserError
from fairhuman.common.images import open_mask
from fairhuman.curation.annotation.refine import AREAS, RefinedDetector, plausible
from fairhuman.curation.annotation.sam import Sam
from fairhuman.data.regions import Box


class Colours:
    """Takes what is not grey, with a hole in its middle."""

    name = "colours"

    def __init__(self, predicted: float = 0.9) -> None:
        self.predicted = predicted
        self.sizes: list[tuple[int, int]] = []

    def segment(self, image: Image.Image, box: Box) -> tuple[NDArray[np.bool_], float]:
        self.sizes.append(image.size)
        values = np.asarray(image).astype(int)
        mask = values.max(axis=2) - values.min(axis=2) > 50
        x, y = int(box[0] + box[2] / 2), int(box[1] + box[3] / 2)
        mask[y, x] = False
        return mask, self.predicted


def picture(size: tuple[int, int], face: Box, hand: Box | None = None) -> Image.Image:
    image = Image.new("RGB", size, (120, 120, 120))
    pen = ImageDraw.Draw(image)
    for box, colour in ((face, (255, 0, 0)), (hand, (0, 255, 0))):
        if box:
            x, y, width, height = box
            pen.ellipse((x, y, x + width - 1, y + height - 1), fill=colour)
    return image


def rows(root: Path) -> dict[str, dict[str, Any]]:
    text = (root / "metadata.jsonl").read_text(encoding="utf-8")
    return {row["file_name"]: row for row in map(json.loads, text.splitlines())}


@pytest.mark.parametrize(
    ("size", "face"),
    [
        ((300, 200), (140, 90, 30, 40)),
        ((300, 200), (0, 0, 41, 31)),  # in a corner
        ((301, 203), (270, 180, 31, 23)),  # in the other
        ((40, 50), (3, 4, 34, 40)),  # nearly all of the image
        ((1200, 800), (1000, 600, 12, 14)),
    ],
)
def test_a_mask_lies_where_the_region_is(size: tuple[int, int], face: Box) -> None:
    image = picture(size, face)
    segmenter = Colours()
    detector = RefinedDetector(SquareDetector(), segmenter)
    region = detector.detect(image)["face"][0]
    assert region.mask is not None
    whole = np.zeros((size[1], size[0]), dtype=bool)
    rows, columns = region.mask.pixels.shape
    top, left = region.mask.top, region.mask.left
    whole[top : top + rows, left : left + columns] = region.mask.pixels
    truth = np.asarray(image)[..., 0] == 255
    assert (whole & ~truth).sum() == 0
    assert (truth & ~whole).sum() == 1  # the hole
    # It sees three times the longer side, and at least 64 pixels where there are so many.
    assert max(segmenter.sizes[0]) <= max(64, 3 * max(face[2:]) + 2)
    assert "masks by colours" in detector.version


def test_a_region_whose_mask_is_not_plausible_stays_as_it_was() -> None:
    image = picture((300, 200), (20, 20, 40, 40), (150, 100, 40, 30))
    plain = SquareDetector().detect(image)
    unsure = RefinedDetector(SquareDetector(), Colours(predicted=0.5)).detect(image)
    assert unsure == plain
    assert all(thing.mask is None for things in unsure.values() for thing in things)


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 2**31),
    st.tuples(*[st.floats(0, 60), st.floats(0, 40), st.floats(1, 40), st.floats(1, 40)]),
    st.floats(0, 1),
)
def test_what_is_taken_lies_near_the_box_and_has_about_its_size(
    seed: int, box: Box, share: float
) -> None:
    draws = np.random.default_rng(seed)
    mask = draws.random((48, 70)) < share
    x, y, width, height = box
    near = np.zeros_like(mask)
    near[int(y) : int(y + height) + 1, int(x) : int(x + width) + 1] = True
    for pixels in (mask, mask & near):
        kept = plausible(pixels, 0.9, box)
        assert plausible(pixels, 0.5, box) is None
        assert plausible(pixels, float("nan"), box) is None
        if kept is None:
            continue
        assert (kept & ~pixels).sum() == 0
        assert kept.sum() >= 0.9 * pixels.sum()
        assert AREAS[0] <= kept.sum() / (width * height) <= AREAS[1]
        ys, xs = np.nonzero(kept)
        reach = 0.2 * max(width, height) + 1
        assert xs.min() >= x - reach
        assert xs.max() <= x + width + reach
        assert ys.min() >= y - reach
        assert ys.max() <= y + height + reach
    assert plausible(np.zeros((48, 70), dtype=bool), 0.9, box) is None
    # All of the image, unless that is about the box.
    assert plausible(np.ones((480, 700), dtype=bool), 0.9, box) is None
    assert plausible(np.ones((20, 30), dtype=bool), 0.9, (1.0, 1.0, 28.0, 18.0)) is not None


@pytest.mark.parametrize("size", [(64, 64), (120, 90), (33, 71)])
def test_a_sam_gives_the_mask_that_transformers_gives(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    from transformers import SamModel, SamProcessor

    folder = save_sam(tmp_path / "sam")
    image = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    )
    mask, predicted = Sam(str(folder)).segment(image, (5.0, 6.0, 20.0, 15.0))
    model, processor = SamModel.from_pretrained(folder), SamProcessor.from_pretrained(folder)
    inputs = processor(images=image, input_boxes=[[[5.0, 6.0, 25.0, 21.0]]], return_tensors="pt")
    with torch.no_grad():
        out = model(
            pixel_values=inputs["pixel_values"],
            input_boxes=inputs["input_boxes"],
            multimask_output=False,
        )
    expected = processor.image_processor.post_process_masks(
        out.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"]
    )
    assert mask.shape == (size[1], size[0])
    assert 0 < mask.sum() < mask.size
    np.testing.assert_array_equal(mask, expected[0][0, 0].numpy())
    assert predicted == pytest.approx(float(out.iou_scores))


def test_the_command_takes_what_is_plausible_and_counts_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A SAM to which all it sees is the mask: that fits a face that fills the image alone."""
    root = tmp_path / "photographs"
    root.mkdir()
    picture((50, 60), (1, 1, 48, 58)).save(root / "near.png")
    picture((300, 200), (20, 20, 40, 40), (150, 100, 40, 30)).save(root / "far.png")
    sam = save_sam(tmp_path / "sure", iou=1.0)
    words = ["annotate", str(root), "--detector", "square_detector:SquareDetector"]
    assert main(words) == 0
    plain = rows(root)
    assert "by SAM" not in capsys.readouterr().out
    assert main([*words, "--sam", str(sam)]) == 0
    out = capsys.readouterr().out
    assert "2 images: 2 looked at, 2 faces and 1 hands found, 2 masks" in out
    assert "1 of these have a mask by SAM; 2 keep their outline or box" in out
    found = rows(root)
    for name in ("near.png", "far.png"):
        for key in ("faces", "hands"):
            assert found[name][key] == plain[name][key]
    assert np.asarray(open_mask(root / found["near.png"]["face_mask"])).min() == 255
    assert "face_mask" not in found["far.png"]
    assert found["far.png"]["hand_mask"] == plain["far.png"]["hand_mask"]
    assert "masks by sure" in found["near.png"]["detected"]["face"]["by"]
    assert str(tmp_path) not in (root / "metadata.jsonl").read_text(encoding="utf-8")
    before = (root / "metadata.jsonl").read_bytes()
    assert main([*words, "--sam", str(sam)]) == 0
    assert "annotations were up to date" in capsys.readouterr().out
    assert (root / "metadata.jsonl").read_bytes() == before
    unsure = save_sam(tmp_path / "unsure", iou=0.1)
    assert main([*words, "--sam", str(unsure)]) == 0
    assert "0 of these have a mask by SAM; 3 keep" in capsys.readouterr().out
    assert {name: row.get("face_mask") for name, row in rows(root).items()} == {
        "near.png": None,
        "far.png": None,
    }


def test_one_refined_face_takes_the_others_boxes_into_the_mask(tmp_path: Path) -> None:
    from fairhuman.curation.annotation import worker
    from fairhuman.curation.annotation.detector import Cutout, Region

    drawn = Cutout(10, 20, np.ones((5, 6), dtype=bool))
    things = [
        Region((10.0, 20.0, 6.0, 5.0), 0.9, mask=drawn),
        Region((40.5, 30.5, 10.0, 8.0), 0.8),
    ]
    png = worker._mask(things, (64, 48))
    assert png is not None
    path = tmp_path / "mask.png"
    path.write_bytes(png)
    mask = np.asarray(open_mask(path))
    expected = np.zeros((48, 64), dtype=np.uint8)
    expected[20:25, 10:16] = 255
    expected[30:39, 40:51] = 255
    np.testing.assert_array_equal(mask, expected)
    assert worker._mask(things[1:], (64, 48)) is None


def test_a_model_that_is_no_sam_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(UserError, match=r"--sam .*cannot be loaded as a SAM"):
        Sam(str(tmp_path))
    with pytest.raises(UserError, match=r"--sam .*there is no such folder"):
        Sam("./nothing")
