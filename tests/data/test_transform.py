"""Masks and boxes go where the image goes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from fairhuman.data.regions import Box, rasterize, to_latent, widen
from fairhuman.data.transform import MOST_SHOWN, Placement, Zoom, grey


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_a_picture_that_is_its_own_mask_stays_equal_to_it_under_a_thousand_draws() -> None:
    noise = rng(0)
    seen = set()
    for draw in range(1000):
        width, height = (int(n) for n in noise.integers(20, 150, 2))
        size = (width, height)
        mask = Image.fromarray(noise.integers(0, 256, (size[1], size[0]), dtype=np.uint8))
        image = Image.merge("RGB", (mask, mask, mask))
        placement = Placement.draw(size, (64, 64), rng(draw), crop="random", flip=True)
        seen.add((placement.flip, placement.left > 0, placement.top > 0))
        moved = placement.image(image)
        assert moved.size == (64, 64)
        np.testing.assert_array_equal(grey(moved.getchannel("G")), grey(placement.image(mask)))
    assert len(seen) >= 5  # flips and crops did happen


def test_boxes_land_on_what_they_enclose() -> None:
    noise = rng(1)
    for draw in range(300):
        width, height = (int(n) for n in noise.integers(80, 300, 2))
        x, y = int(noise.integers(0, width - 30)), int(noise.integers(0, height - 30))
        w, h = (int(n) for n in noise.integers(10, 30, 2))
        image = Image.new("L", (width, height))
        ImageDraw.Draw(image).rectangle((x, y, x + w - 1, y + h - 1), fill=255)
        placement = Placement.draw((width, height), (96, 96), rng(draw), crop="random", flip=True)
        drawn = grey(placement.image(image))
        covered = rasterize(placement.boxes([(x, y, w, h)]), (96, 96))
        # Resampling blurs the drawn edge over a pixel or two; the middle and the area agree.
        assert abs(drawn.sum() - covered.sum()) < 0.1 * covered.sum() + 4
        assert np.abs(drawn - covered).mean() < 0.02


def test_the_draw_does_not_depend_on_the_settings() -> None:
    still = Placement.draw((200, 100), (64, 64), rng(3), crop="random", flip=False)
    flipped = Placement.draw((200, 100), (64, 64), rng(3), crop="random", flip=True)
    assert (still.left, still.top) == (flipped.left, flipped.top)


def whole_boxes(placement: Placement, boxes: list[Box]) -> int:
    inside = [(x, y, x + w, y + h) for x, y, w, h in placement.boxes(boxes)]
    return sum(min(box) >= -1 and max(box) <= placement.size[0] + 1 for box in inside)


@pytest.mark.parametrize("upright", [False, True])
def test_a_crop_by_regions_keeps_as_many_whole_as_any_crop_could(upright: bool) -> None:
    noise = rng(5)
    places = set()
    for draw in range(100):
        boxes: list[Box] = []
        for _ in range(int(noise.integers(1, 5))):
            along, across = float(noise.integers(0, 130)), float(noise.integers(0, 40))
            extent = float(noise.integers(5, 30))
            box = (across, along, 20.0, extent) if upright else (along, across, extent, 20.0)
            boxes.append(box)
        stored = (64, 160) if upright else (160, 64)
        found = Placement.draw(stored, (64, 64), rng(draw), crop="regions", flip=True, keep=boxes)
        others = [
            replace(found, top=start) if upright else replace(found, left=start)
            for start in range(97)
        ]
        assert whole_boxes(found, boxes) == max(whole_boxes(other, boxes) for other in others)
        places.add((found.left, found.top))
    assert len(places) > 30  # and it stays a random crop


def test_a_region_larger_than_the_crop_fills_it() -> None:
    placement = Placement.draw(
        (300, 64), (64, 64), rng(0), crop="regions", keep=[(100.0, 0.0, 150.0, 64.0)]
    )
    assert 100 <= placement.left <= 250 - 64


def test_a_zoom_shows_one_region_whole_and_invents_no_pixels() -> None:
    noise = rng(7)
    closer = []
    for draw in range(300):
        stored = (int(noise.integers(70, 400)), int(noise.integers(70, 400)))
        boxes: list[Box] = []
        for _ in range(int(noise.integers(1, 4))):
            w, h = (float(n) for n in noise.integers(5, 60, 2))
            x, y = noise.uniform(0, stored[0] - w), noise.uniform(0, stored[1] - h)
            boxes.append((float(x), float(y), w, h))
        size = (64, 96)

        def placed(zoom: Zoom | None) -> Placement:
            return Placement.draw(
                stored,  # noqa: B023
                size,  # noqa: B023
                rng(draw),  # noqa: B023
                crop="regions",
                flip=True,
                keep=boxes,  # noqa: B023
                zoom=zoom,
            )

        plain, found = placed(None), placed(Zoom(share=1.0, most=3.0))
        factor = max(found.resized[i] / plain.resized[i] for i in (0, 1))
        assert 1 <= factor <= 3.05
        assert placed(Zoom(share=0.0, most=3.0)) == plain
        if factor > 1.01:
            closer.append(factor)
            assert all(found.resized[i] <= stored[i] + 1 for i in (0, 1))
            whole = [
                max(w / size[0], h / size[1])
                for (x, y, w, h) in found.boxes(boxes)
                if x >= -1 and y >= -1 and x + w <= size[0] + 1 and y + h <= size[1] + 1
            ]
            assert min(whole) < MOST_SHOWN + 0.02
    assert len(closer) > 100
    assert max(closer) > 2


def test_a_zoom_shows_some_of_the_draws_closer() -> None:
    keep: list[Box] = [(100.0, 100.0, 20.0, 20.0), (300.0, 50.0, 40.0, 30.0)]
    zoom = Zoom(share=0.25, most=2.0)
    drawn = [
        Placement.draw((512, 512), (128, 128), rng(draw), crop="regions", keep=keep, zoom=zoom)
        for draw in range(2000)
    ]
    wide = [p.resized[0] for p in drawn]
    assert sum(w > 128 for w in wide) / len(wide) == pytest.approx(0.25, abs=0.03)
    assert max(wide) <= 256
    assert all(whole_boxes(p, keep) >= 1 for p in drawn)


@pytest.mark.parametrize("size", [(64, 64), (640, 480), (33, 1000), (1000, 33), (65, 64)])
def test_the_square_is_covered_whatever_the_image_s_shape(size: tuple[int, int]) -> None:
    for seed in range(20):
        placement = Placement.draw(size, (64, 64), rng(seed), crop="random")
        assert 0 <= placement.left <= placement.resized[0] - 64
        assert 0 <= placement.top <= placement.resized[1] - 64
        assert min(placement.resized) == 64


def test_time_ids_are_original_size_crop_corner_and_target_size() -> None:
    placement = Placement((200, 100), (128, 64), left=30, top=0, size=(64, 64), flip=False)
    assert placement.time_ids() == (100, 200, 0, 30, 64, 64)


def test_a_mask_of_another_size_is_refused() -> None:
    placement = Placement.draw((20, 10), (64, 64), rng(0))
    with pytest.raises(ValueError, match=r"expected an image of \(20, 10\)"):
        placement.image(Image.new("L", (10, 20)))


def test_coverage_keeps_the_area_of_boxes_with_fractions_of_a_pixel() -> None:
    box = (10.3, 20.7, 13.9, 0.4)
    covered = rasterize([box], (64, 64))
    assert covered.sum() == pytest.approx(box[2] * box[3], rel=1e-5)
    latent = to_latent(torch.from_numpy(covered)[None], 8)
    assert latent.shape == (1, 8, 8)
    assert float(latent.sum()) * 64 == pytest.approx(box[2] * box[3], rel=1e-5)
    assert float(latent.max()) > 0  # a box smaller than a cell is not lost


def test_overlapping_boxes_are_united_and_those_outside_are_cut() -> None:
    twice = rasterize([(4, 4, 8, 8), (4, 4, 8, 8)], (16, 16))
    assert twice.sum() == 64
    assert rasterize([(-8, -8, 16, 16)], (16, 16)).sum() == 64
    assert rasterize([(20, 20, 5, 5)], (16, 16)).sum() == 0


def test_widening_adds_the_margin_on_every_side() -> None:
    assert widen([(10.0, 20.0, 3.0, 4.0)], 2.0) == [(8.0, 18.0, 7.0, 8.0)]


def test_no_region_is_a_valid_count_of_regions() -> None:
    assert to_latent(torch.zeros(0, 64, 64), 8).shape == (0, 8, 8)
