"""Several data sets that are trained on together: data.sources."""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
from collections import Counter
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_config import GOOD
from test_index import config_of

from fairhuman.cli import main
from fairhuman.common.errors import ConfigError, DataError
from fairhuman.config import Config, Source
from fairhuman.config.load import load_config, load_for
from fairhuman.curation.packing.pack import pack
from fairhuman.data.dataset import People, collate
from fairhuman.data.index.digests import image_digests
from fairhuman.data.index.load import load
from fairhuman.data.index.records import Records
from fairhuman.data.mixture import Mixture
from fairhuman.data.order import Draw, StepSampler, Stream
from fairhuman.data.place import BESIDE
from fairhuman.training.split import Split, split

COUNTS = (7, 3, 12)
SOURCES = np.repeat(range(3), COUNTS)
SHOWS = np.arange(22) % 3 == 0
"""Of 22 samples; every source has both kinds."""
BUCKETS = np.array([0, 0, 1, 2] * 5 + [1, 1])


def mixture(*sources: dict[str, Any]) -> Mixture:
    return Mixture.of([Source(root="x", **source) for source in sources])


REPEATS = mixture({"repeats": 2}, {"repeats": 5}, {})
SHARES = mixture({"share": 0.5}, {"repeats": 2}, {})
ALL_SHARES = mixture({"share": 0.2}, {"share": 0.1}, {"share": 0.7})


def first(stream: Stream, count: int) -> list[Draw]:
    return [stream.orders[0][position] for position in range(count)]


def steps_of(stream: Stream, count: int, size: int = 4, seen: int = 0) -> list[list[Draw]]:
    sampler = StepSampler(stream, batch_size=size, micro_batches=1, rank=0, ranks=1, seen=seen)
    return list(islice(sampler, count))


def test_a_sample_comes_as_often_in_every_epoch_as_its_source_is_repeated() -> None:
    stream = Stream([0] * 22, 5, sources=SOURCES, mixture=REPEATS)
    length = REPEATS.epoch(COUNTS)
    assert length == 7 * 2 + 3 * 5 + 12
    drawn = first(stream, 4 * length)
    for epoch in range(4):
        times = Counter(index for _, index in drawn[epoch * length : (epoch + 1) * length])
        assert times == {index: REPEATS.repeats[SOURCES[index]] for index in range(22)}
    assert len(set(drawn)) == len(drawn)  # one that comes again has other random numbers


@pytest.mark.parametrize("mixed", [REPEATS, SHARES, ALL_SHARES])
def test_sources_keep_their_parts_in_every_stretch_of_the_stream(mixed: Mixture) -> None:
    drawn = [
        SOURCES[index] for _, index in first(Stream([0] * 22, 5, None, None, SOURCES, mixed), 900)
    ]
    parts = mixed.fractions(COUNTS)
    assert sum(parts) == 1
    for source, part in enumerate(parts):
        came = np.cumsum([found == source for found in drawn])
        # A position that is divided in halves and halves again is rounded each time.
        assert np.abs(came - float(part) * np.arange(1, 901)).max() <= 2


def test_what_shares_leave_is_divided_by_samples_times_repeats() -> None:
    assert SHARES.fractions(COUNTS) == [Fraction(1, 2), Fraction(6, 36), Fraction(12, 36)]
    assert ALL_SHARES.fractions((1, 1, 1000)) == [Fraction(n, 10) for n in (2, 1, 7)]
    thirds = mixture(*[{"share": 0.333}] * 3)
    assert thirds.fractions((5, 6, 7)) == [Fraction(1, 3)] * 3


@pytest.mark.parametrize("share", [None, 0.4])
@pytest.mark.parametrize("mixed", [REPEATS, SHARES, ALL_SHARES])
def test_in_buckets_the_parts_and_equal_turns_hold_in_the_long_run(
    mixed: Mixture, share: float | None
) -> None:
    size, count = 4, 1000
    taken = steps_of(Stream(BUCKETS, 5, SHOWS, share, SOURCES, mixed), count, size)
    assert all(len({BUCKETS[index] for _, index in step}) == 1 for step in taken)
    drawn = [draw for step in taken for draw in step]
    assert len(set(drawn)) == len(drawn)
    came = np.bincount([SOURCES[index] for _, index in drawn], minlength=3)
    if share is None or mixed is not REPEATS:  # repeats are of a kind, and the kinds have a share
        for source, part in enumerate(mixed.fractions(COUNTS)):
            group = [source] if mixed.shares[source] is not None or share is None else [1, 2]
            wanted = sum(float(mixed.fractions(COUNTS)[place]) for place in group)
            assert abs(came[group].sum() - wanted * size * count) <= 3 * size + 8, (source, part)
    if share is None:
        times = np.bincount([index for _, index in drawn], minlength=22)
        for source in range(3):
            own = times[source == SOURCES]
            assert own.max() - own.min() <= 2 * size
    else:
        shown = sum(SHOWS[index] for _, index in drawn)
        assert abs(shown - share * size * count) <= 3 * size


def test_a_region_share_prefers_sources_that_have_it_where_these_have_repeats() -> None:
    """With repeats the kinds are divided as share says, and each kind by samples times repeats."""
    shows = SOURCES == 0
    drawn = [i for _, i in first(Stream([0] * 22, 5, shows, 0.6, SOURCES, REPEATS), 1000)]
    came = np.bincount(SOURCES[drawn])
    np.testing.assert_allclose(came, [600, 400 * 15 / 27, 400 * 12 / 27], atol=2)


def test_a_region_share_that_the_sources_shares_rule_out_is_refused() -> None:
    half = mixture({"share": 0.5}, {}, {})
    shows = SOURCES == 0
    with pytest.raises(ValueError, match=r"the shares of data.sources allow 0.5 to 0.5; change"):
        Stream([0] * 22, 0, shows, 0.6, SOURCES, half)
    with pytest.raises(ValueError, match=r"allow 0.5 to 0.5"):
        Stream([0] * 22, 0, shows, 1.0, SOURCES, half)
    kept = [i for _, i in first(Stream([0] * 22, 0, shows, 0.5, SOURCES, half), 100)]
    assert np.bincount(SOURCES[kept]).tolist()[0] == 50


@pytest.mark.parametrize("share", [None, 0.0, 0.4, 1.0])
@pytest.mark.parametrize("buckets", [[0] * 22, BUCKETS])
def test_one_source_is_drawn_as_a_root_is(share: float | None, buckets: Any) -> None:
    root = Stream(buckets, 9, SHOWS, share)
    alone = Stream(buckets, 9, SHOWS, share, [0] * 22, mixture({}))
    assert steps_of(root, 60) == steps_of(alone, 60)
    # How often a source comes does not matter where it is the only one.
    for other in (mixture({"repeats": 3}), mixture({"share": 1.0})):
        assert steps_of(Stream(buckets, 9, SHOWS, share, [0] * 22, other), 60) == steps_of(root, 60)


@pytest.mark.parametrize("share", [None, 0.4])
@pytest.mark.parametrize("mixed", [REPEATS, SHARES, ALL_SHARES])
def test_a_stream_continues_at_any_step_and_is_the_same_on_any_ranks(
    mixed: Mixture, share: float | None
) -> None:
    def taken(seen: int, ranks: int, micro: int) -> list[list[Draw]]:
        size = 12 // (ranks * micro)
        found = []
        for rank in range(ranks):
            stream = Stream(BUCKETS, 2, SHOWS, share, SOURCES, mixed)
            sampler = StepSampler(
                stream, batch_size=size, micro_batches=micro, rank=rank, ranks=ranks, seen=seen
            )
            found.append(list(islice(sampler, 20)))
        return [
            sorted(draw for step in steps for draw in step) for steps in zip(*found, strict=True)
        ]

    whole = taken(0, 1, 1)
    for seen, ranks, micro in ((0, 2, 3), (12, 3, 1), (84, 1, 2), (228, 2, 1)):
        assert taken(seen, ranks, micro)[: 20 - seen // 12] == whole[seen // 12 :]


def test_sources_of_the_same_size_are_shuffled_each_for_itself() -> None:
    stream = Stream([0] * 20, 0, sources=[0] * 10 + [1] * 10, mixture=mixture({}, {}))
    drawn = [index for _, index in first(stream, 20)]
    orders = [[i % 10 for i in drawn if i // 10 == source] for source in (0, 1)]
    assert orders[0] != orders[1]


def test_very_unlike_weights_do_not_overflow() -> None:
    mixed = mixture({"repeats": 10**6}, {"share": 1e-9}, {})
    stream = Stream(BUCKETS, 0, sources=SOURCES, mixture=mixed)
    seen = 10**7
    assert stream.taken(seen, 10**6).sum() == seen
    assert len(steps_of(stream, 3)) == 3


# From folders to samples.


def made(folder: Path, names: list[str], words: str, colour: int, **keys: str) -> Path:
    """A data set of grey images of these names."""
    from PIL import Image

    folder.mkdir(parents=True)
    lines = []
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (64 + number, 64), (colour, number, 0)).save(folder / name)
        row = {"file_name": name, "text": f"{words} {number}", "faces": [], "hands": []}
        lines.append(json.dumps({keys.get(key, key): value for key, value in row.items()}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


NAMES = ["a.png", "b.png", "sources[1]/a.png"]


@pytest.fixture
def roots(tmp_path: Path) -> list[Path]:
    """Three data sets with the same names of files, the second with other names of keys."""
    first = made(tmp_path / "first", NAMES, "first", 10)
    second = made(tmp_path / "second", NAMES[:2], "second", 20, text="caption")
    third = made(tmp_path / "third", NAMES, "third", 30)
    return [first, second, third]


def config(*sources: dict[str, Any], **data: Any) -> Config:
    config = config_of(Path("x"), resolution=64, **data)
    listed = [Source(**{**source, "root": str(source["root"])}) for source in sources]
    kept = config.data.model_copy(update={"root": None, "sources": listed})
    return config.model_copy(update={"data": kept})


@pytest.mark.parametrize("index", [None, "index"])
@pytest.mark.parametrize("packed", [False, True])
def test_every_record_is_that_of_its_own_source(
    roots: list[Path], tmp_path: Path, packed: bool, index: str | None
) -> None:
    if packed:
        pack(roots[2], tmp_path / "packed", "parquet", 2**20, {})
        roots[2] = tmp_path / "packed"
    listed = config(
        {"root": roots[0]},
        {"root": roots[1], "columns": {"text": "caption"}, "caption_prefix": "sks"},
        {"root": roots[2], "caption_prefix": "ohwx man,"},
        index=index and str(tmp_path / index),
    )
    for _ in range(2):  # the second time by the index, without a look at the files
        records, _ = load(listed)
        listed = listed.model_copy(
            update={"data": listed.data.model_copy(update={"check": "trust"})}
        )
        texts = [record.text for record in records]
        assert texts == [
            *("first 0", "first 1", "first 2", "sks second 0", "sks second 1"),
            *(f"ohwx man, third {number}" for number in range(3)),
        ]
        assert len({record.id for record in records}) == len(records) == 8
        assert [record.id for record in records] == list(records.ids())
        assert records[0].id == "a.png"  # as if it were alone
        assert [record.size for record in records] == [
            (64 + n, 64) for n in (0, 1, 2, 0, 1, 0, 1, 2)
        ]
        people = People(records, ("face", "hand"), listed.data, seed=0, cell=8)
        red = [people[0, place].pixels[0, 0, 0, 0] for place in range(8)]  # type: ignore[index]
        wanted = [value / 127.5 - 1 for value in (10, 10, 10, 20, 20, 30, 30, 30)]
        np.testing.assert_allclose(red, wanted, atol=1e-6)
        assert records.sources().tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    digests = image_digests(records, "full")
    assert set(digests) == set(records.ids())
    assert len(set(digests.values())) == 8
    if index:
        assert not any((root / BESIDE).exists() for root in roots)


def test_parts_of_records_are_what_their_places_say(roots: list[Path]) -> None:
    records, _ = load(config(*({"root": root} for root in (roots[0], roots[2]))))
    all_of_them = list(records)
    assert records[-1] == all_of_them[-1]
    for places in ([], [0], [5], [1, 2, 3], [0, 5], range(6)):
        part = records.select(np.array(places, dtype=np.int64))
        assert list(part) == [all_of_them[place] for place in places]
        assert list(pickle.loads(pickle.dumps(part))) == list(part)
    assert list(records[1:5:2]) == all_of_them[1:5:2]
    with pytest.raises(ValueError, match="must ascend"):
        records[::-1]
    with pytest.raises(IndexError):
        records[6]


def batches(records: Records, listed: Config, stream: Stream) -> list[Any]:
    people = People(records, ("face", "hand"), listed.data, seed=3, cell=8)
    batch = collate([people[draw] for step in steps_of(stream, 6) for draw in step])
    return [value if not hasattr(value, "numpy") else value.tolist() for value in batch._values()]


def test_one_source_gives_the_records_and_samples_of_a_root(people: Path) -> None:
    options: dict[str, Any] = {
        "crop": "zoom",
        "flip": True,
        "caption_dropout": 0.3,
        "validation": 5,
    }
    root, one = config_of(people, resolution=64, **options), config({"root": people}, **options)
    found = []
    for listed in (root, one):
        parted = split(load(listed)[0], listed)
        mixed = Mixture.of(list(listed.data.named_sources.values()))
        stream = Stream([0] * 19, 3, None, None, parted.trained.sources(), mixed)
        found.append(
            (
                list(parted.trained),
                list(parted.held_out),
                parted.epoch,
                batches(parted.trained, listed, stream),
            )
        )
        assert not list(parted.lines(listed))
    assert found[0] == found[1]


def files(records: Records) -> set[str]:
    return {os.path.realpath(str(record.image)) for record in records}


def parted(listed: Config) -> Split:
    return split(load(listed)[0], listed)


@pytest.mark.parametrize("how", ["twice", "nested", "linked"])
def test_a_held_out_image_is_trained_on_in_no_source(
    people: Path, tmp_path: Path, how: str
) -> None:
    root = shutil.copytree(people, tmp_path / "people", ignore=shutil.ignore_patterns(BESIDE))
    other = root
    if how == "nested":
        lines = (root / "metadata.jsonl").read_text().splitlines()[:12]
        best = []
        for line in lines:
            row = json.loads(line)
            for key in ("file_name", "face_mask", "hand_mask"):
                if row.get(key):
                    row[key] = f"../{row[key]}"
            best.append(json.dumps(row))
        other = root / "best"
        other.mkdir()
        (other / "metadata.jsonl").write_text("\n".join(best) + "\n")
    if how == "linked":
        other = tmp_path / "link"
        other.symlink_to(root)
    listed = config({"root": root}, {"root": other, "repeats": 3}, validation=6, outside="allow")
    found = parted(listed)
    assert len(found.held_out) == len(files(found.held_out)) == 6
    assert not files(found.held_out) & files(found.trained)
    assert files(found.held_out) | files(found.trained) == files(load(listed)[0])
    told, *shares = found.lines(listed)
    number = 12 if how == "nested" else 24
    assert told.startswith(f"data.sources: {number} images are in an earlier source too; one that")
    assert [line.split(":")[0] for line in shares] == ["data.sources[0]", "data.sources[1]"]
    assert found.epoch == sum(n * t for n, t in zip(found.trained.counts(), (1, 3), strict=True))


def test_what_is_held_out_of_the_first_source_depends_on_it_alone(
    people: Path, roots: list[Path]
) -> None:
    one = {record.id for record in parted(config({"root": people}, validation=5)).held_out}
    both = parted(config({"root": people}, {"root": roots[0]}, validation=5)).held_out
    assert {record.id for record in both if not record.id.startswith("sources[")} <= one


def test_a_source_that_is_held_out_whole_is_refused(roots: list[Path]) -> None:
    listed = config({"root": roots[0]}, {"root": roots[2]}, validation=5)
    with pytest.raises(
        DataError, match=r"data.sources\[\d\]\.root = .*: all its images are held out"
    ):
        parted(listed)


# What a user is told.


@pytest.fixture
def command(tmp_path: Path, roots: list[Path]) -> Any:
    """Return what `fairhuman train --dry-run` with these sources says."""
    path = tmp_path / "config.yaml"
    path.write_text(GOOD.replace("{root: demo/people}", "{resolution: 64}"))

    def run(capsys: pytest.CaptureFixture[str], *overrides: str) -> list[str]:
        assert main(["train", "--config", str(path), "--dry-run", *overrides]) == 2
        return capsys.readouterr().err.splitlines()

    return run


def broken(tmp_path: Path, how: str) -> Path:
    if how == "missing":
        return tmp_path / "nowhere"
    folder = made(tmp_path / how, ["a.png"], "x", 1)
    if how == "no metadata":
        (folder / "metadata.jsonl").unlink()
    if how == "no rows":
        (folder / "metadata.jsonl").write_text("")
    if how == "no usable row":
        (folder / "metadata.jsonl").write_text('{"file_name": "a.png"}\n')
    if how == "twice":
        line = (folder / "metadata.jsonl").read_text()
        (folder / "metadata.jsonl").write_text(line * 2)
    if how == "two kinds of shards":
        (folder / "metadata.jsonl").unlink()
        for name in ("0.tar", "0.parquet"):
            (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("missing", "there is no such folder"),
        ("no metadata", "holds no metadata.jsonl"),
        ("no rows", "holds no usable sample (metadata.jsonl is empty)"),
        ("no usable row", ": correct these, or set data.on_error=skip"),
        ("twice", ": correct these, or set data.on_error=skip"),
        ("two kinds of shards", "holds .parquet and .tar shards"),
    ],
)
def test_a_source_that_cannot_be_used_is_named(
    command: Any, capsys: Any, roots: list[Path], tmp_path: Path, how: str, told: str
) -> None:
    folder = broken(tmp_path, how)
    lines = command(capsys, f"data.sources=[{{root: {roots[0]}}}, {{root: '{folder}'}}]")
    assert len(lines) == 1 + told.startswith(": ")  # the row, and its data set
    assert f"data.sources[1].root = {str(folder)!r}" in lines[-1]
    assert told in lines[-1]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ([], "data.root: is missing and has no default; give it, or data.sources"),
        (["data.sources=[]"], "data.root: is missing"),
        (["data.root=x", "data.sources=[{root: y}]"], "data.sources: data.root = 'x' is given too"),
        (["data.sources=[{root: x, repeats: 0}]"], "data.sources.0.repeats = 0: must be greater"),
        (["data.sources=[{root: x, share: 1.5}]"], "data.sources.0.share = 1.5: must be less"),
        (["data.sources=[{root: x, share: 0}]"], "data.sources.0.share = 0: must be greater"),
        (["data.sources=[{root: x, share: .nan}]"], "data.sources.0.share = nan: must be a finite"),
        (["data.sources=[{root: x, repeat: 2}]"], "data.sources.0.repeat: unknown key (did you"),
        (["data.sources=[{repeats: 2}]"], "data.sources.0.root: is missing"),
        (["data.sources=[x]"], "data.sources.0 = 'x': must be a valid dictionary"),
        (["data.sources=x"], "data.sources = 'x': must be a valid list"),
        (
            ["data.sources=[{root: x, share: 0.5, repeats: 2}, {root: y}]"],
            "data.sources[0].repeats = 2: share = 0.5 says how often",
        ),
        (
            ["data.sources=[{root: x, share: 0.5}, {root: y, share: 0.4}]"],
            "data.sources: their shares come to 0.9, not to 1",
        ),
        (
            ["data.sources=[{root: x, share: 0.5}, {root: y, share: 0.5}, {root: z}]"],
            "data.sources: the shares come to 1, and leave nothing for the sources without one",
        ),
        (
            ["data.sources=[{root: x, columns: {txt: caption}}]"],
            "data.sources[0].columns.txt: there is no such column (did you mean text?)",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    command: Any, capsys: Any, data: list[str], told: str
) -> None:
    (line,) = command(capsys, *data)
    assert told in line


def test_a_folder_is_inspected_with_the_columns_of_its_source(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    sources = f"[{{root: {tmp_path}/a}}, {{root: {tmp_path}/b, columns: {{text: caption}}}}]"
    path.write_text(GOOD.replace("{root: demo/people}", f"{{sources: {sources}, flip: true}}"))
    for name, columns in (("a", {}), ("b", {"text": "caption"}), ("c", {})):
        data = load_for(tmp_path / name, path, ["data.resolution=64"]).data
        assert list(data.named_sources) == ["data"]
        assert (data.root, data.columns) == (str(tmp_path / name), columns)
        assert (data.flip, data.resolution) == (True, 64)
    with pytest.raises(ConfigError, match=r"data\.resolutions: unknown key"):
        load_for(tmp_path, path, ["data.resolutions=64"])


def test_a_config_with_sources_is_written_and_read_as_it_is(
    tmp_path: Path, roots: list[Path]
) -> None:
    path = tmp_path / "config.yaml"
    text = f"{{sources: [{{root: {roots[0]}, share: 0.25}}, {{root: {roots[2]}, repeats: 3}}]}}"
    path.write_text(GOOD.replace("{root: demo/people}", text))
    listed = load_config(path)
    listed.save(tmp_path / "written.yaml")
    assert load_config(tmp_path / "written.yaml") == listed
    assert math.isclose(listed.data.sources[0].share or 0, 0.25)
    assert [left != right for left, right in pairwise(listed.data.sources)] == [True]
