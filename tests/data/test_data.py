"""The data set on disk, its order, its samples and its mistakes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fairhuman.common.errors import DataError
from fairhuman.common.images import open_image
from fairhuman.config import Data
from fairhuman.data.dataset import Batch, People, collate, steps
from fairhuman.data.order import Draw, StepSampler, Stream, generator, permutation
from fairhuman.data.records import Reading, Record, load_records, write_metadata

REGIONS = ["face", "hand"]


def rows(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "metadata.jsonl").read_text().splitlines()]


@pytest.fixture
def broken(people: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the data set with changes to its second line."""

    def build(change: Callable[[Path, dict[str, Any]], None]) -> Path:
        root = tmp_path / "broken"
        shutil.copytree(people, root)
        lines = rows(root)
        change(root, lines[1])
        write_metadata(root, lines)
        return root

    return build


def error(root: Path, on_error: str = "fail", **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        load_records(root, Reading(REGIONS, **settings), on_error=on_error)
    return str(caught.value)


def truncate(root: Path, row: dict[str, Any]) -> None:
    path = root / row["file_name"]
    path.write_bytes(path.read_bytes()[:-200])


def box_outside(root: Path, row: dict[str, Any]) -> None:
    row["hands"] = [[50, 50, 40, 40]]


def small_mask(root: Path, row: dict[str, Any]) -> None:
    Image.new("L", (10, 12)).save(root / "small.png")
    row["face_mask"] = "small.png"


MISTAKES: dict[str, tuple[Callable[[Path, dict[str, Any]], Any], str]] = {
    "truncated image": (truncate, "cannot be read as an image"),
    "box outside": (box_outside, "hands: [50.0, 50.0, 40.0, 40.0] is outside the image of 64 x 64"),
    "mask of another size": (small_mask, "small.png is 10 x 12 px, its image 64 x 64"),
    "missing file": (lambda root, row: row.update(file_name="no.png"), "no.png: there is no such"),
    "missing mask": (lambda root, row: row.update(hand_mask="no.png"), "no.png: there is no such"),
    "caption not text": (lambda root, row: row.update(text=3), "text = 3: must be text"),
    "no caption": (lambda root, row: row.pop("text"), "'text' is missing"),
    "boxes not boxes": (lambda root, row: row.update(faces=[[1, 2]]), "[1, 2] is not [x, y, "),
    "boxes not a list": (lambda root, row: row.update(faces=7), "faces = 7: must be a list"),
    "empty box": (lambda root, row: row.update(faces=[[1, 1, 0, 4]]), "has no area"),
    "box of NaN": (lambda root, row: row.update(faces=[[1, 1, float("nan"), 4]]), "not finite"),
    "not annotated": (
        lambda root, row: [row.pop(key, None) for key in ("hands", "hand_mask")],
        "neither 'hands' nor 'hand_mask' is there",
    ),
    "twice": (lambda root, row: row.update(file_name=rows(root)[0]["file_name"]), "listed already"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_names_file_and_line_and_can_be_left_out(
    broken: Callable[..., Path], name: str
) -> None:
    change, expected = MISTAKES[name]
    root = broken(change)
    message = error(root)
    assert f"{root / 'metadata.jsonl'}:2: " in message
    assert expected in message
    records, left_out = load_records(root, Reading(REGIONS), on_error="skip")
    assert (len(records), len(left_out)) == (23, 1)


def test_a_line_that_is_not_json_is_named(people: Path, tmp_path: Path) -> None:
    root = tmp_path / "broken"
    shutil.copytree(people, root)
    with (root / "metadata.jsonl").open("ab") as lines:
        lines.write(b'{"file_name": \n\xff\xfe\n[]\n')
    message = error(root)
    assert "metadata.jsonl:25: is not JSON" in message
    assert "metadata.jsonl:26: is not UTF-8" in message
    assert "metadata.jsonl:27: must be a JSON object" in message


def test_an_absent_or_empty_data_set_is_named(tmp_path: Path) -> None:
    assert "there is no such folder" in error(tmp_path / "nowhere")
    assert "holds no metadata.jsonl" in error(tmp_path)
    (tmp_path / "metadata.jsonl").write_text("\n")
    assert "holds no usable sample" in error(tmp_path)
    assert "holds no usable sample" in error(tmp_path, on_error="skip")


def test_a_missing_key_can_be_taken_as_none_here(broken: Callable[..., Path]) -> None:
    root = broken(MISTAKES["not annotated"][0])
    records, _ = load_records(root, Reading(REGIONS, unannotated="absent"))
    assert records[1].regions["hand"].boxes == ()
    assert records[1].regions["hand"].mask is None


def test_columns_can_have_other_names(people: Path, tmp_path: Path) -> None:
    root = tmp_path / "named"
    shutil.copytree(people, root)
    renamed = {"file_name": "image", "text": "text_english", "face_mask": "mask_face"}
    write_metadata(
        root, [{renamed.get(key, key): value for key, value in row.items()} for row in rows(root)]
    )
    records, _ = load_records(root, Reading(REGIONS, columns=renamed))
    assert [record.text for record in records] == [row["text"] for row in rows(people)]
    assert any(record.regions["face"].mask for record in records)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise
    Image.new("RGB", (40, 20), "red").save(tmp_path / "a.jpg", exif=exif)
    assert open_image(tmp_path / "a.jpg").size == (20, 40)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "CMYK", "L", "1"])
def test_any_mode_becomes_rgb_and_transparency_lies_on_white(tmp_path: Path, mode: str) -> None:
    image = Image.new(mode, (8, 8))  # all zero: black, or transparent
    path = tmp_path / ("a.tiff" if mode == "CMYK" else "a.png")
    image.save(path)
    opened = open_image(path)
    assert opened.mode == "RGB"
    white = mode in ("RGBA", "LA", "CMYK")
    assert opened.getpixel((0, 0)) == ((255, 255, 255) if white else (0, 0, 0))


def test_16_bits_of_grey_are_scaled_not_clipped(tmp_path: Path) -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "a.png")
    opened = open_image(tmp_path / "a.png")
    np.testing.assert_array_equal(np.asarray(opened), np.repeat(grey[..., None], 3, axis=2))


@pytest.mark.parametrize("share", [0.0, 0.25, 0.7, 1.0])
def test_a_region_share_is_kept_in_every_stretch_of_the_stream(share: float) -> None:
    shows = [index % 5 == 0 for index in range(40)]
    order = Stream([0] * 40, 3, shows, share).orders[0]
    draws = [order[position] for position in range(400)]
    held = np.cumsum([shows[index] for _, index in draws])
    np.testing.assert_allclose(held, share * np.arange(1, 401), atol=1)
    assert len(set(draws)) == 400  # a sample that comes again has other random numbers
    assert [order[position] for position in (399, 0, 57)] == [draws[p] for p in (399, 0, 57)]
    for shown in {True, False} if 0 < share < 1 else {share > 0}:
        times = np.bincount([index for _, index in draws if shows[index] == shown], minlength=40)
        times = times[[show == shown for show in shows]]
        assert times.max() - times.min() <= 1  # nobody is preferred


def test_a_share_without_such_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="with a region"):
        Stream([0] * 4, 0, [False] * 4, 0.5)
    with pytest.raises(ValueError, match="without a region"):
        Stream([0] * 4, 0, [True] * 4, 0.5)


def test_orders_are_permutations_that_differ_by_epoch_and_seed() -> None:
    orders = [permutation(seed, epoch, 50).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert orders[0] == permutation(0, 0, 50).tolist()


def test_the_numbers_of_a_sample_are_its_own() -> None:
    def draw(*key: Any) -> float:
        return float(generator(*key).random())

    keys = [(0, 0, "a", "noise"), (1, 0, "a", "noise"), (0, 1, "a", "noise")]
    keys += [(0, 0, "b", "noise"), (0, 0, "a", "placement"), (0, 11, "", "a"), (0, 1, "1", "a")]
    assert len({draw(*key) for key in keys}) == len(keys)
    assert draw(*keys[0]) == draw(*keys[0])


ONE_BUCKET = [0] * 7
UNEVEN_BUCKETS = [0] * 5 + [1] * 2 + [2]


def take(count: int, buckets: Sequence[int] = ONE_BUCKET, **settings: Any) -> list[list[Draw]]:
    iterator = iter(StepSampler(Stream(buckets, 0), **settings))
    return [next(iterator) for _ in range(count)]


@pytest.mark.parametrize("buckets", [ONE_BUCKET, UNEVEN_BUCKETS])
@pytest.mark.parametrize(("ranks", "micro", "batch"), [(1, 1, 4), (1, 2, 2), (2, 1, 2), (4, 1, 1)])
def test_a_step_holds_the_same_samples_however_it_is_split(
    ranks: int, micro: int, batch: int, buckets: list[int]
) -> None:
    whole = take(5, buckets, batch_size=4, micro_batches=1, rank=0, ranks=1)
    split = [
        take(5, buckets, batch_size=batch, micro_batches=micro, rank=rank, ranks=ranks)
        for rank in range(ranks)
    ]
    for step in range(5):
        together = [draw for rank in range(ranks) for draw in split[rank][step]]
        assert sorted(together) == sorted(whole[step])


def test_every_sample_comes_once_an_epoch_and_a_resumed_order_goes_on() -> None:
    settings: dict[str, Any] = {"batch_size": 3, "micro_batches": 1, "rank": 0, "ranks": 1}
    stream = [draw for step in take(14, **settings) for draw in step]
    for epoch in range(6):
        part = stream[epoch * 7 : (epoch + 1) * 7]
        assert sorted(part) == [(epoch, index) for index in range(7)]
    assert take(4, **settings, seen=9) == take(7, **settings)[3:]


def test_a_step_is_of_one_bucket_and_every_sample_comes_equally_often() -> None:
    settings: dict[str, Any] = {"batch_size": 3, "micro_batches": 1, "rank": 0, "ranks": 1}
    steps = take(800, UNEVEN_BUCKETS, **settings)
    assert all(len({UNEVEN_BUCKETS[index] for _, index in step}) == 1 for step in steps)
    draws = [draw for step in steps for draw in step]
    assert len(set(draws)) == len(draws)  # a sample that comes again has other random numbers
    times = np.bincount([index for _, index in draws])
    # 2400 draws of 8 samples, but for a step of three in a bucket of one.
    assert times.min() >= 297
    assert times.max() <= 303


def test_a_resumed_stream_of_buckets_goes_on() -> None:
    settings: dict[str, Any] = {"batch_size": 3, "micro_batches": 1, "rank": 0, "ranks": 1}
    assert take(7, UNEVEN_BUCKETS, **settings, seen=27) == take(16, UNEVEN_BUCKETS, **settings)[9:]


def test_a_share_holds_in_every_bucket_and_drops_what_it_excludes() -> None:
    shows = [True, False, True, False, True, False]
    half = Stream([0, 0, 1, 1, 1, 1], 0, shows, 0.5)
    for order in half.orders:
        assert sum(shows[order[position][1]] for position in range(100)) == 50
    shown = Stream([0, 0, 1, 1, 1, 2], 0, shows, 1.0)
    assert len(shown.orders) == 2  # the third bucket has no sample that shows a region
    assert all(shows[order[position][1]] for order in shown.orders for position in range(20))


def dataset(people: Path, **settings: Any) -> People:
    records, _ = load_records(people, Reading(REGIONS))
    data = Data(root=str(people), resolution=64, mask_margin=0, **settings)
    return People(records, REGIONS, data, seed=0, cell=8)


def same(first: Batch, second: Batch) -> bool:
    assert first.pixels is not None
    assert second.pixels is not None
    return (
        torch.equal(first.pixels, second.pixels)
        and torch.equal(first.masks, second.masks)
        and torch.equal(first.time_ids, second.time_ids)
        and first.captions == second.captions
    )


def test_a_sample_is_a_function_of_epoch_and_record(people: Path) -> None:
    data = dataset(people, crop="random", flip=True, caption_dropout=0.5)
    again = dataset(people, crop="random", flip=True, caption_dropout=0.5)
    assert all(same(data[1, i], again[1, i]) for i in range(8))
    assert not all(same(data[1, i], data[2, i]) for i in range(8))


def test_masks_cover_the_annotated_regions(people: Path) -> None:
    data = dataset(people)
    for index, record in enumerate(data.records):
        sample = data[0, index]
        assert sample.masks.shape == (1, 2, 8, 8)
        for channel, region in enumerate(REGIONS):
            mask = record.regions[region].mask
            area = float(sample.masks[0, channel].sum()) * 64
            expected = 0.0
            if mask:
                expected = (
                    float(np.asarray(Image.open(mask.open("rb")), dtype=np.float64).sum()) / 255
                )
            assert area == pytest.approx(expected, rel=1e-4)


def test_captions_are_dropped_at_the_asked_rate(people: Path) -> None:
    data = dataset(people, caption_dropout=0.25)
    dropped = [data[epoch, i].captions[0] is None for epoch in range(20) for i in range(24)]
    assert 0.18 < np.mean(dropped) < 0.32
    assert dataset(people)[0, 0].captions == [data.records[0].text]


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_in_workers_gives_the_same_batches(people: Path, workers: int) -> None:
    data = dataset(people, crop="random")
    sampler = StepSampler(Stream([0] * 24, 0), batch_size=3, micro_batches=2, rank=0, ranks=1)
    stream = steps(data, sampler, workers)
    found = [next(stream) for _ in range(3)]
    order = iter(sampler)
    for batches in found:
        draws = next(order)
        assert [len(batch.ids) for batch in batches] == [3, 3]
        for start, batch in zip((0, 3), batches, strict=True):
            assert same(batch, collate([data[draw] for draw in draws[start : start + 3]]))


def test_records_are_in_the_order_of_the_file(people: Path) -> None:
    records, left_out = load_records(people, Reading(REGIONS))
    assert not left_out
    assert [record.id for record in records] == [row["file_name"] for row in rows(people)]
    assert all(isinstance(record, Record) and record.size == (64, 64) for record in records)
