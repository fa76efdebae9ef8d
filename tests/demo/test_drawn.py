"""The drawn people: reproducible, with boxes and masks that are exactly what can be seen."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fairhuman.common.errors import UserError
from fairhuman.demo.blurred import blurred
from fairhuman.demo.drawn import DrawnSample, draw_people, draw_person, draw_zoomed, sample_rng

COUNT = 160


@pytest.fixture(scope="module")
def samples() -> list[DrawnSample]:
    return [draw_person(sample_rng(0, index), 128) for index in range(COUNT)]


def _tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _tight(mask: np.ndarray) -> tuple[int, int, int, int]:
    ys, xs = np.nonzero(mask >= 128)
    x, y = int(xs.min()), int(ys.min())
    return x, y, int(xs.max()) + 1 - x, int(ys.max()) + 1 - y


def test_the_same_seed_draws_the_same_files(tmp_path: Path) -> None:
    counts = draw_people(tmp_path / "a", count=6, size=64, seed=3)
    assert draw_people(tmp_path / "b", count=6, size=64, seed=3) == counts
    assert _tree(tmp_path / "a") == _tree(tmp_path / "b")
    draw_people(tmp_path / "c", count=6, size=64, seed=4)
    assert _tree(tmp_path / "a") != _tree(tmp_path / "c")


def test_fewer_people_are_the_first_of_more(tmp_path: Path) -> None:
    draw_people(tmp_path / "few", count=4, size=64)
    draw_people(tmp_path / "more", count=9, size=64)
    few, more = _tree(tmp_path / "few"), _tree(tmp_path / "more")
    lines = more["metadata.jsonl"].splitlines()
    assert few["metadata.jsonl"].splitlines() == lines[:4]
    assert all(more[name] == data for name, data in few.items() if name.endswith(".png"))


def test_boxes_are_the_tight_bounds_of_the_masks(samples: list[DrawnSample]) -> None:
    for sample in samples:
        for boxes, image in ((sample.faces, sample.face_mask), (sample.hands, sample.hand_mask)):
            mask = np.asarray(image)
            covered = np.zeros(mask.shape, bool)
            for x, y, w, h in boxes:
                assert 0 <= x < x + w <= 128
                assert 0 <= y < y + h <= 128
                covered[y : y + h, x : x + w] = True
                # Each edge of a box touches its region.
                inside = mask[y : y + h, x : x + w] >= 128
                assert inside[0].any()
                assert inside[-1].any()
                assert inside[:, 0].any()
                assert inside[:, -1].any()
            assert not (mask >= 128)[~covered].any()
            if len(boxes) == 1:
                assert boxes[0] == _tight(mask)
            assert bool(boxes) == bool(mask.any())


def test_blurred_faces_and_hands_lose_their_details_and_the_rest_keeps_its_own(
    samples: list[DrawnSample],
) -> None:
    def edges(picture: np.ndarray) -> np.ndarray:
        return np.abs(np.diff(picture, axis=1))[:, :, 0]

    for sample in samples[:20]:
        boxes = [*sample.faces, *sample.hands]
        before, after = (
            np.asarray(picture, float)
            for picture in (sample.image, blurred(sample.image, boxes, 0.1))
        )
        far = np.ones(before.shape[:2], bool)
        for x, y, w, h in boxes:
            reach = int(np.ceil(0.3 * max(w, h)))
            far[max(0, y - reach) : y + h + reach, max(0, x - reach) : x + w + reach] = False
            window = (slice(y, y + h), slice(x, x + w - 1))
            assert edges(after)[window].mean() < 0.7 * edges(before)[window].mean()
        assert np.abs(after - before)[far].max(initial=0) <= 1


@pytest.mark.parametrize("zoom", [0.5, 2.0])
def test_people_can_be_nearer_or_farther_with_regions_of_that_size(
    zoom: float, samples: list[DrawnSample]
) -> None:
    ratios: dict[str, list[float]] = {"faces": [], "hands": []}
    for index, usual in enumerate(samples[:60]):
        other = draw_zoomed(sample_rng(0, index), 128, zoom)
        assert other.framing == usual.framing
        assert other.image.size == other.face_mask.size == other.hand_mask.size == (128, 128)
        assert len(other.fingertips) == len(other.hands)
        for region, found in ratios.items():
            pairs = [getattr(sample, region) for sample in (usual, other)]
            if len(pairs[0]) == len(pairs[1]) == 1:
                x, y, w, h = pairs[1][0]
                if min(x, y) > 0 and max(x + w, y + h) < 128:  # not cut off
                    found.append(max(w, h) / max(pairs[0][0][2:]))
    for found in ratios.values():
        assert len(found) > 8
        assert found == pytest.approx([zoom] * len(found), rel=0.15)


def test_a_share_of_the_images_may_show_hands(tmp_path: Path) -> None:
    counts = draw_people(tmp_path, count=40, size=64, hands=0.1)
    assert counts["images"] - counts["without_hands"] in (3, 4)  # some hide theirs
    assert draw_people(tmp_path, count=40, size=64, hands=0.1) == counts
    assert draw_people(tmp_path, count=40, size=64)["without_hands"] < 15


def test_hands_and_faces_do_not_share_pixels(samples: list[DrawnSample]) -> None:
    for sample in samples:
        both = np.asarray(sample.face_mask, int) + np.asarray(sample.hand_mask, int)
        assert both.max() <= 255 + 1  # each mask rounds on its own


def test_masks_lie_on_skin_and_not_on_what_covers_it(samples: list[DrawnSample]) -> None:
    # A hand is one flat skin colour but for outline and creases, so the mask's inside says so.
    for sample in samples[:60]:
        if len(sample.hands) == 0 or sample.framing == "pair":
            continue
        inside = np.asarray(sample.image)[np.asarray(sample.hand_mask) == 255]
        red, green, blue = inside.astype(int).T
        assert np.mean((red >= green - 4) & (green >= blue - 4)) > 0.95


def _shown(mask: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Return the mask along a straight line."""
    line = start + np.linspace(0, 1, 60)[:, None] * (end - start)
    return mask[line[:, 1].astype(int), line[:, 0].astype(int)]


@pytest.mark.parametrize(
    ("framing", "size"),
    [("full", 256), ("knees", 256), ("headless", 256), ("pair", 256),
     ("full", 128), ("knees", 128), ("waist", 128), ("close", 128)],
)  # fmt: skip
def test_every_visible_hand_has_five_separate_fingers(
    framing: str, size: int, samples: list[DrawnSample]
) -> None:
    chosen = [index for index, sample in enumerate(samples) if sample.framing == framing]
    found = 0
    for index in chosen[:10]:
        sample = draw_person(sample_rng(0, index), size)
        mask = np.asarray(sample.hand_mask) >= 128
        assert len(sample.fingertips) == len(sample.hands)
        for (x, y, w, h), tips in zip(sample.hands, sample.fingertips, strict=True):
            points = np.array(tips)
            assert points.shape == (5, 2)
            for u, v in points:
                assert x <= u < x + w
                assert y <= v < y + h
                assert mask[int(v), int(u)], (index, u, v)
            # From the tip of each finger to the next, the way leads out of the hand.
            for start, end in itertools.pairwise(points):
                assert not _shown(mask, start, end).all(), (index, start, end)
            found += 1
    assert found >= 3


def test_the_set_is_varied(samples: list[DrawnSample]) -> None:
    no_face = sum(not sample.faces for sample in samples) / COUNT
    no_hands = sum(not sample.hands for sample in samples) / COUNT
    assert 0.05 <= no_face <= 0.18
    assert 0.06 <= no_hands <= 0.22
    assert {sample.framing for sample in samples} == {
        "full", "knees", "waist", "close", "headless", "pair"
    }  # fmt: skip
    hands = [max(box[2:]) for sample in samples for box in sample.hands]
    faces = [max(box[2:]) for sample in samples for box in sample.faces]
    assert min(hands) < 18
    assert np.mean([20 <= side <= 42 for side in hands]) > 0.4
    assert max(hands) >= 30
    assert min(faces) < 26
    assert max(faces) > 40
    assert len({sample.text for sample in samples}) == COUNT


def test_captions_say_what_is_drawn(samples: list[DrawnSample]) -> None:
    for sample in samples:
        text = sample.text
        hidden_head = "seen from behind" in text or "the head out of the picture" in text
        assert hidden_head == (not sample.faces), text
        if "both open hands" in text or "raising both hands" in text:
            assert len(sample.hands) == 2
            assert "waving" not in text
        if "waving with" in text:
            assert sample.hands
        if not sample.hands:
            hidden = ("in the pocket", "behind the back", "hands out of the picture")
            assert any(words in text for words in hidden), text
        assert ("two people" in text) == (sample.framing == "pair")
        assert "skin" in text
        assert len(text.split()) <= 66


def test_left_and_right_are_the_persons_own(samples: list[DrawnSample]) -> None:
    seen = set()
    for sample in samples:
        if sample.framing == "pair" or len(sample.hands) != 1 or "waving with" not in sample.text:
            continue
        x, _, w, _ = sample.hands[0]
        own = "left" if "waving with the left" in sample.text else "right"
        behind = "seen from behind" in sample.text
        assert (x + w / 2 > 64) == ((own == "left") != behind), sample.text
        seen.add((own, behind))
    assert {("left", False), ("right", False)} <= seen


@pytest.mark.parametrize("size", [64, 65, 200])
def test_any_size_works(size: int, tmp_path: Path) -> None:
    counts = draw_people(tmp_path, count=5, size=size)
    rows = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
    assert counts["images"] == len(rows) == 5
    assert counts["faces"] == sum(len(row["faces"]) for row in rows)
    for row in rows:
        with Image.open(tmp_path / row["file_name"]) as image:
            assert (image.mode, image.size) == ("RGB", (size, size))
        for region in ("face", "hand"):
            key = f"{region}_mask"
            assert (key in row) == bool(row[f"{region}s"])
            if key in row:
                with Image.open(tmp_path / row[key]) as mask:
                    assert (mask.mode, mask.size) == ("L", (size, size))


def test_drawing_again_changes_nothing(tmp_path: Path) -> None:
    counts = draw_people(tmp_path, count=4, size=64)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert draw_people(tmp_path, count=4, size=64) == counts
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_other_parameters_replace_the_old_people(tmp_path: Path) -> None:
    draw_people(tmp_path / "a", count=6, size=64)
    (tmp_path / "a" / "metadata.jsonl").unlink()  # cut short: drawn again, not refused
    draw_people(tmp_path / "a", count=3, size=72, seed=1)
    draw_people(tmp_path / "b", count=3, size=72, seed=1)
    assert _tree(tmp_path / "a") == _tree(tmp_path / "b")


@pytest.mark.parametrize("name", ["metadata.jsonl", "images/cat.png"])
def test_a_foreign_folder_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("{}\n")
    with pytest.raises(UserError, match="choose another folder"):
        draw_people(tmp_path, count=2, size=64)
    assert path.read_text() == "{}\n"


def test_impossible_requests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least 1"):
        draw_people(tmp_path, count=0)
    with pytest.raises(UserError, match="at least 64"):
        draw_people(tmp_path, size=32)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        draw_people(tmp_path / "file")
