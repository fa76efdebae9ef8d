"""Data sets in shards: the same samples as from a folder, and one line for what cannot be used."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from ranks import run_ranks
from test_index import config_of, rows

from fairhuman.common.errors import DataError, OutputError
from fairhuman.curation.packing.pack import pack
from fairhuman.data.buckets import frame
from fairhuman.data.dataset import Batch, People, steps
from fairhuman.data.index.digests import image_digests
from fairhuman.data.index.load import load
from fairhuman.data.order import StepSampler, Stream
from fairhuman.data.place import BESIDE
from fairhuman.data.records import Reading, Record, load_records, write_metadata
from fairhuman.data.stores import scan
from fairhuman.data.stores.member import Location, parse

KINDS = ("parquet", "webdataset", "saved", "compressed")
"""Of shards; `compressed` is Parquet as other tools write it."""
REGIONS = ["face", "hand"]


@pytest.fixture(scope="module")
def folder(people: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The people with masks, boxes and control images, names below folders and in UTF-8."""
    root = tmp_path_factory.mktemp("folder") / "people"
    shutil.copytree(people, root, ignore=shutil.ignore_patterns(BESIDE))
    lines = rows(root)
    (root / "über").mkdir()
    for number, line in enumerate(lines):
        image = Image.open(root / line["file_name"])
        control = f"control-{number}.png"
        image.convert("L").save(root / control)
        line["conditioning_image"] = control
        if number % 3 == 0:
            name = f"über/b.{number}.JPG"
            image.convert("RGB").save(root / name, "jpeg", exif=_turned(number))
            line["file_name"] = name
            line["text"] += ' "ü" 😀'
        if number % 5 == 0:
            line["score"] = number / 7
    os.rename(root / lines[1]["file_name"], root / "plain")  # an image without a suffix
    lines[1]["file_name"] = "plain"
    write_metadata(root, lines)
    return root


def _turned(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 3 if number % 2 else 1
    return exif


@pytest.fixture(scope="module")
def packed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The same as shards of a kind, several of them."""
    out = tmp_path_factory.mktemp("packed")

    @functools.cache
    def make(kind: str) -> Path:
        made = out / kind
        if kind in ("parquet", "webdataset"):
            assert pack(folder, made, kind, 30_000, {}).shards > 2
            return made
        made.mkdir()
        shards = sorted(make("parquet").glob("*.parquet"))
        for number, shard in enumerate(shards):
            table = pq.read_table(shard)
            if kind == "compressed":
                pq.write_table(table, made / shard.name, compression="zstd", row_group_size=4)
                continue
            name = f"data-{number:05d}-of-{len(shards):05d}.arrow"
            with (
                pa.OSFile(str(made / name), "wb") as file,
                pa.ipc.new_stream(file, table.schema) as stream,
            ):
                stream.write_table(table, max_chunksize=3)
        if kind == "saved":
            names = [path.name for path in sorted(made.glob("*.arrow"))]
            files = [{"filename": name} for name in names]
            (made / "state.json").write_text(json.dumps({"_data_files": files}))
        return made

    return make


def same(first: Any, second: Any) -> bool:
    """Return whether two values of a batch are equal to the bit."""
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    return bool(first == second)


def batches(root: Path, seen: int, count: int, workers: int = 0, **data: Any) -> list[Batch]:
    """Return some steps of a run over a data set, from a place in its order."""
    config = config_of(root, "controlnet", resolution=64, **data)
    records, _ = load(config)
    buckets = np.array([hash(frame(record.size, config.data)) for record in records])
    stream = Stream(buckets, 3, records.shows(), config.data.region_share)
    sampler = StepSampler(stream, batch_size=2, micro_batches=2, rank=0, ranks=1, seen=seen)
    people = People(records, REGIONS, config.data, seed=3, cell=8)
    drawn: Iterator[list[Batch]] = steps(people, sampler, workers)
    return [batch for step in islice(drawn, count) for batch in step]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "data",
    [
        {"crop": "zoom", "flip": True, "caption_dropout": 0.3, "condition_dropout": 0.3},
        {"crop": "random", "buckets": True, "check": "header"},
    ],
)
def test_a_run_over_shards_is_that_over_the_folder(
    folder: Path, packed: Callable[[str], Path], kind: str, data: dict[str, Any]
) -> None:
    """Two epochs: samples, order, pixels, masks, captions, control images."""
    expected = batches(folder, 0, 12, **data)
    found = batches(packed(kind), 0, 12, **data)
    assert len(found) == len(expected) == 24
    for one, other in zip(found, expected, strict=True):
        assert all(map(same, one._values(), other._values()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_continues_as_if_it_had_not_stopped(
    packed: Callable[[str], Path], kind: str
) -> None:
    whole = batches(packed(kind), 0, 10, crop="random")
    rest = batches(packed(kind), 4 * 4, 6, crop="random", workers=2)  # forked, too
    for one, other in zip(rest, whole[8:], strict=True):
        assert all(map(same, one._values(), other._values()))


def told(root: Path, **data: Any) -> list[Any]:
    """Return what a data set's records are, without where their files are."""
    records, _ = load(config_of(root, "controlnet", **data))
    return [
        (r.id, r.text, r.size, {k: (a.boxes, a.mask is None) for k, a in r.regions.items()})
        for r in records
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_records_and_digests_are_those_of_the_folder(
    folder: Path, packed: Callable[[str], Path], kind: str
) -> None:
    root = packed(kind)
    assert told(root) == told(folder)
    config = config_of(root, "controlnet")
    records, problems = load(config)
    assert not problems
    plainly, _ = load_records(root, Reading.of(config))
    assert list(records) == plainly
    expected = {
        line["file_name"]: hashlib.blake2b(
            (folder / line["file_name"]).read_bytes(), digest_size=20
        ).hexdigest()
        for line in rows(folder)
    }
    assert image_digests(records, "full") == image_digests(records, "full") == expected


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_are_read_from_their_place(packed: Callable[[str], Path], kind: str) -> None:
    """What is not compressed is not copied, and what is copied is copied once."""
    root = packed(kind)
    load(config_of(root, "controlnet"))
    copies = list((root / BESIDE / "shards").glob("*.bytes"))
    assert bool(copies) == (kind == "compressed")
    shards = [path for path in root.iterdir() if path.suffix in (".parquet", ".tar", ".arrow")]
    assert len(list((root / BESIDE / "shards").glob("*.arrow"))) == len(shards) > 2


@pytest.mark.parametrize("kind", KINDS)
def test_another_process_takes_the_records(packed: Callable[[str], Path], kind: str) -> None:
    records, _ = load(config_of(packed(kind), "controlnet"))
    assert list(pickle.loads(pickle.dumps(records))) == list(records)


def ids_and_digests(root: str) -> tuple[list[str], dict[str, bytes]]:
    records, _ = load(config_of(Path(root), "controlnet"))
    return list(records.ids()), dict(image_digests(records, "full"))


@pytest.mark.parametrize("kind", ["webdataset", "compressed"])
def test_ranks_read_the_shards_together(
    packed: Callable[[str], Path], kind: str, tmp_path: Path
) -> None:
    root = shutil.copytree(
        packed(kind), tmp_path / kind, ignore=shutil.ignore_patterns(BESIDE, ".fairhuman*")
    )
    expected = ids_and_digests(str(packed(kind)))
    assert run_ranks(ids_and_digests, 3, str(root)) == [expected] * 3


def test_a_shard_is_read_again_only_where_it_has_changed(
    packed: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = shutil.copytree(
        packed("webdataset"), tmp_path / "tars", ignore=shutil.ignore_patterns(BESIDE)
    )
    for path in root.glob("*.tar"):
        os.utime(path, ns=(0, 10**18))
    read: list[str] = []
    of_tar = scan._scan

    def remembered(root: Path, shard: str, *others: Any) -> None:
        read.append(shard)
        of_tar(root, shard, *others)

    monkeypatch.setattr(scan, "_scan", remembered)
    first = told(root)
    shards = sorted(path.name for path in root.glob("*.tar"))
    assert sorted(read) == shards
    assert told(root) == first
    assert len(read) == len(shards)
    os.utime(root / shards[1], ns=(0, 10**18 + 1))
    assert told(root) == first
    assert read[len(shards) :] == [shards[1]]
    for path in (root / BESIDE / "shards").glob(f"{shards[0]}-*.arrow"):
        path.write_bytes(path.read_bytes()[:-50])
    assert told(root) == first
    monkeypatch.setattr(scan, "VERSION", scan.VERSION + 1)
    assert told(root) == first
    assert len(read) == 2 * len(shards) + 2


@pytest.mark.parametrize("shard", ["0.tar", "a b+c.parquet", "shards/x-0.bytes"])
@pytest.mark.parametrize("label", ["1.jpg", "a//b.jpg", "", "9+9/x//y", "ü\n2.png"])
def test_a_location_is_read_from_its_text(shard: str, label: str) -> None:
    location = Location(7, 2**40, shard, label)
    assert parse(str(location)) == location


def jpeg(number: int = 0, size: tuple[int, int] = (40, 30)) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "jpeg")
    return file.getvalue()


def mask(size: tuple[int, int] = (40, 30)) -> bytes:
    file = io.BytesIO()
    Image.new("L", size, 255).save(file, "png")
    return file.getvalue()


def tar(path: Path, members: dict[str, bytes] | list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, content in members.items() if isinstance(members, dict) else members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))


def only(root: Path, **data: Any) -> Record:
    records, _ = load(config_of(root, unannotated="absent", **data))
    (record,) = records
    return record


def test_tars_of_other_tools(tmp_path: Path) -> None:
    """Captions in .txt, keys in folders, masks by region, members that are none of ours."""
    root = tmp_path / "tars"
    members = {
        "a/b.c/0001.cls": b"7",
        "a/b.c/0001.JPG": jpeg(),
        "a/b.c/0001.txt": b" a woman \n",
        "a/b.c/0001.face.png": mask(),
        "a/b.c/._0001.jpg": b"of a Mac",
        "a/b.c/0002.png": mask(),
        "a/b.c/0002.json": json.dumps({"text": "two", "faces": [[1, 2, 3, 4]]}).encode(),
        "a/b.c/0002.txt": b"not this one",
    }
    tar(root / "00.tar", members)
    first, second = load(config_of(root, unannotated="absent"))[0]
    assert (first.id, first.text, first.size) == ("00.tar/a/b.c/0001.JPG", "a woman", (40, 30))
    assert first.regions["face"].mask is not None
    assert first.image.read_bytes() == members["a/b.c/0001.JPG"]
    assert first.regions["face"].mask.read_bytes() == members["a/b.c/0001.face.png"]
    assert (second.text, second.regions["face"].boxes) == ("two", ((1.0, 2.0, 3.0, 4.0),))


@pytest.mark.parametrize("as_bytes", [False, True])
def test_parquet_of_other_tools(tmp_path: Path, as_bytes: bool) -> None:
    """Other names of columns, pictures as bytes alone, boxes of float32, other columns."""
    root = tmp_path / "parquet"
    root.mkdir()
    picture = jpeg() if as_bytes else {"bytes": jpeg(), "path": None}
    other = {"bytes": mask(), "path": "m.png"}
    table = pa.Table.from_pylist(
        [{"jpg": picture, "caption": "a man", "hand_mask": other, "at": 7, "faces": [[1, 2, 3, 4]]}]
    )
    boxes = table.column("faces").cast(pa.list_(pa.list_(pa.float32(), 4)))
    table = table.set_column(table.schema.get_field_index("faces"), "faces", boxes)
    pq.write_table(table, root / "train-00000-of-00001.parquet")
    columns = {"image": "jpg", "text": "caption"}
    record = only(root, columns=columns)
    assert (record.id, record.text) == ("train-00000-of-00001.parquet/1", "a man")
    assert record.regions["face"].boxes == ((1.0, 2.0, 3.0, 4.0),)
    assert record.image.read_bytes() == jpeg()
    with pytest.raises(DataError, match=r"no column 'image' \(it has .*: set data.columns="):
        only(root)


def test_a_damaged_picture_is_named_with_its_shard(tmp_path: Path) -> None:
    root = tmp_path / "tars"
    annotated = json.dumps({"text": "", "faces": [], "hands": []}).encode()
    members = {"1.jpg": jpeg(), "1.json": annotated, "2.jpg": jpeg()[:-300], "2.json": annotated}
    tar(root / "0.tar", {**members, "3.json": annotated, "4.json": b"{", "5.jpg": jpeg()})
    records, problems = load(config_of(root, on_error="skip"))
    assert [record.id for record in records] == ["0.tar/1.jpg"]
    lines = sorted(map(str, problems))
    assert lines[0].startswith(f"{root}/0.tar: 2: {root}/0.tar: 2.jpg: cannot be read as an image")
    assert lines[1] == f"{root}/0.tar: 3: holds no image (KEY.jpg, or another picture's suffix)"
    assert lines[2].startswith(f"{root}/0.tar: 4: 4.json: is not JSON")
    assert lines[3].startswith(f"{root}/0.tar: 5: 'text' is missing")


def _cut(name: str, left: int) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        path = sorted(root.glob(name))[0]
        path.write_bytes(path.read_bytes()[:left])

    return spoil


def _names(*names: str) -> Callable[[Path], None]:
    return lambda root: tar(root / "00000.tar", [(name, jpeg()) for name in names])


def _link(root: Path) -> None:
    with tarfile.open(root / "00000.tar", "w") as file:
        member = tarfile.TarInfo("1.jpg")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(member)


def _of_paths(root: Path) -> None:
    row = {"image": {"bytes": None, "path": "/etc/passwd"}, "text": "", "faces": [], "hands": []}
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.Table.from_pylist([row]).drop(["image"])
    table = table.append_column("image", pa.array([row["image"]], kind))
    pq.write_table(table, root / "00000.parquet")


SPOILT: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "tar in a member": ("webdataset", _cut("*.tar", 3000), "is cut short or damaged at"),
    "tar in its end": ("webdataset", _cut("*.tar", -10240), "is cut short or damaged at"),
    "tar in a header": ("webdataset", _cut("*.tar", 100), "cannot be read as a tar"),
    "tar of nothing": ("webdataset", _cut("*.tar", 0), "cannot be read as a tar"),
    "tar that leads out": ("webdataset", _names("../1.jpg"), "'../1.jpg' leads out of the tar"),
    "tar from the root": ("webdataset", _names("/1.jpg"), "'/1.jpg' leads out of the tar"),
    "tar with a name twice": (
        "webdataset",
        _names("1.jpg", "1.jpg"),
        "'1.jpg' is in the tar twice",
    ),
    "tar in disorder": ("webdataset", _names("1.jpg", "2.jpg", "1.a.png"), "do not follow each"),
    "tar with a link": ("webdataset", _link, "'1.jpg' is no plain file"),
    "compressed tar": (
        "webdataset",
        lambda root: [path.rename(f"{path}.gz") for path in root.glob("*.tar")],
        "00000.tar.gz: is compressed, and samples are read at random: uncompress it",
    ),
    "Parquet cut short": ("parquet", _cut("*.parquet", 5000), "cannot be read as Parquet"),
    "Parquet of nothing": ("parquet", _cut("*.parquet", 0), "cannot be read as Parquet"),
    "Parquet without pictures": (
        "parquet",
        lambda root: pq.write_table(pa.table({"image": ["a.jpg"]}), root / "00000.parquet"),
        "00000.parquet: has no column with pictures",
    ),
    "Parquet of paths": ("parquet", _of_paths, "'/etc/passwd' names a file, and shards must hold"),
    "Parquet of two splits": (
        "parquet",
        lambda root: [
            shutil.copy(root / "00000.parquet", root / f"{split}-00000-of-00001.parquet")
            for split in ("test", "train")
        ],
        "holds several splits (test, train): set data.split to one of them, such as "
        "data.split=train",
    ),
    "two kinds": (
        "parquet",
        lambda root: tar(root / "1.tar", {}),
        "holds .parquet and .tar shards",
    ),
    "saved and cut short": ("saved", _cut("*.arrow", -9), "cannot be read as Arrow's stream"),
    "saved without an end": ("saved", _cut("*.arrow", -8), "(it has no end)"),
    "saved and gone": (
        "saved",
        lambda root: sorted(root.glob("*.arrow"))[-1].unlink(),
        "No such file or directory",
    ),
    "saved splits": (
        "saved",
        lambda root: (root / "dataset_dict.json").write_text('{"splits": ["train", "test"]}'),
        "holds several splits (train, test): set data.root to one of them, such as",
    ),
    "saved selection": (
        "saved",
        lambda root: (root / "state.json").write_text(
            '{"_data_files": [{"filename": "a"}], "_indices_files": [1]}'
        ),
        "flatten_indices",
    ),
    "state that leads out": (
        "saved",
        lambda root: (root / "state.json").write_text('{"_data_files": [{"filename": "../a"}]}'),
        "state.json: lists no files of a dataset",
    ),
}


@pytest.mark.parametrize("name", SPOILT)
def test_what_cannot_be_used_is_said_in_a_line(
    packed: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    kind, spoil, expected = SPOILT[name]
    root = shutil.copytree(packed(kind), tmp_path / "x", ignore=shutil.ignore_patterns(BESIDE))
    spoil(root)
    with pytest.raises(DataError) as caught:
        load(config_of(root))
    lines = str(caught.value).splitlines()
    assert expected in lines[0]
    assert str(root) in lines[0]
    assert len(lines) <= 2  # and how to leave a sample out


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_shards_without_a_sample(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "none"
    root.mkdir()
    if kind == "tar":
        tar(root / "0.tar", {})
    else:
        empty = pa.table({"image": pa.array([], pa.binary()), "text": pa.array([], pa.string())})
        pq.write_table(empty, root / "0.parquet")
    with pytest.raises(DataError, match=r"holds no usable sample \(the set of shards is empty\)"):
        load(config_of(root))


def test_a_shard_that_is_cut_short_while_a_run_reads_it(
    packed: Callable[[str], Path], tmp_path: Path
) -> None:
    root = shutil.copytree(
        packed("webdataset"), tmp_path / "x", ignore=shutil.ignore_patterns(BESIDE)
    )
    config = config_of(root, resolution=64)
    records, _ = load(config)
    people = People(records, REGIONS, config.data, seed=0, cell=8)
    _cut("*.tar", 2048)(root)
    with pytest.raises(DataError, match=r"00000\.tar: .*: cannot be read: its shard is cut short"):
        [people[0, index] for index in range(len(people))]


def test_no_room_for_copies_is_said_before_one_is_made(
    packed: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "free_bytes", lambda path: 1000)
    root = packed("compressed")
    with pytest.raises(OutputError, match=r"compressed and have to be copied .* set data\.index"):
        load(config_of(root, index=str(tmp_path)))
    assert not list((tmp_path).rglob("*.bytes"))


def test_a_row_cannot_name_files_outside_the_shards(tmp_path: Path) -> None:
    root = tmp_path / "tars"
    secret = root.parent / "secret"
    secret.write_bytes(mask())
    for name in (str(secret), "../secret", "0+9/../secret//x.png"):
        row = {"text": "", "face_mask": name, "hands": []}
        tar(root / "0.tar", {"1.jpg": jpeg(), "1.json": json.dumps(row).encode()})
        with pytest.raises(DataError, match="names a file, and shards must hold their pictures"):
            load(config_of(root))
