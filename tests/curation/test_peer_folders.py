"""Folders of kohya, OneTrainer, datasets and SimpleTuner: what is taken, told and refused."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageCms

from fairhuman.cli import main
from fairhuman.common.images import open_image, open_mask
from fairhuman.data.records import Reading, load_records

SIZE = (40, 30)
Captured = pytest.CaptureFixture[str]


def picture(path: Path, size: tuple[int, int] = SIZE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "grey").save(path)
    return path


def square(path: Path, size: tuple[int, int] = SIZE) -> Path:
    """Write a mask of 100 pixels."""
    mask = np.zeros(size[::-1], np.uint8)
    mask[5:15, 10:20] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)
    return path


def imported(kind: str, images: Path, *more: str | Path) -> int:
    out = images.parent / "out"
    return main(["import", kind, "--images", str(images), "--out", str(out), *map(str, more)])


def rows(images: Path) -> dict[str, dict[str, Any]]:
    """Return the rows of the data set, which the trainer's reader must take."""
    out = images.parent / "out"
    records, _ = load_records(out, Reading(("face", "hand"), "absent"))
    lines = (out / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    found = {row["file_name"]: row for row in map(json.loads, lines)}
    assert [record.id for record in records] == list(found)
    return found


def texts(images: Path) -> dict[str, str]:
    return {name: row["text"] for name, row in rows(images).items()}


def refused(images: Path, capsys: Captured, code: int) -> str:
    """Return the one line of a refusal, after which nothing is there."""
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2
    assert not (images.parent / "out").exists()
    return line


# kohya


@pytest.fixture
def kohya(tmp_path: Path) -> Path:
    root = tmp_path / "img"
    for name in ("10_anna woman/a.PNG", "10_anna woman/b é.jpg", "5_cat/c.webp", "5_cat/d.png"):
        picture(root / name)
    (root / "10_anna woman" / "a.txt").write_bytes(b"\xef\xbb\xbfanna,  smiling\r\nsecond line\r\n")
    (root / "5_cat" / "c.caption").write_text("une légende", encoding="utf-16")
    (root / "5_cat" / "d.txt").write_text(" \n")
    return root


def test_kohya_folders_give_captions_and_prompts(kohya: Path, capsys: Captured) -> None:
    assert imported("kohya", kohya) == 0
    assert texts(kohya) == {
        "10_anna woman/a.PNG": "anna, smiling",
        "10_anna woman/b é.jpg": "anna woman",
        "5_cat/c.webp": "une légende",
        "5_cat/d.png": "",  # a file without words is a caption to kohya
    }
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith("4 images, 3 captions")
    assert "5 repeats of 5_cat are not taken: every image is drawn equally often" in said[1]
    assert said[2].startswith("10 repeats of 10_anna woman are not taken")
    assert "prompt of their folder's name: 'anna woman'" in said[3]
    assert "1 caption files hold several lines, such as that of 10_anna woman/a.PNG" in said[4]
    assert said[5].startswith("1 images have no caption")
    assert said[-1].startswith(f"next: `fairhuman annotate {kohya.parent / 'out'}`")


def test_the_images_take_no_space_and_annotate_keeps_the_captions(kohya: Path) -> None:
    assert imported("kohya", kohya) == 0
    out = kohya.parent / "out"
    assert (out / "5_cat" / "c.webp").samefile(kohya / "5_cat" / "c.webp")
    before = texts(kohya)
    detector = "square_detector:SquareDetector"
    assert main(["annotate", str(out), "--detector", detector, "--jobs", "1"]) == 0
    assert texts(kohya) == before
    assert all("faces" in row for row in rows(kohya).values())


def test_what_kohya_does_not_read_is_named(kohya: Path, capsys: Captured) -> None:
    for name in ("x.png", "reg/1_woman/r.png", "5_cat/deeper/y.png", "0_off/z.png", "log/l.png"):
        picture(kohya / name)
    assert imported("kohya", kohya) == 0
    assert len(rows(kohya)) == 4
    said = capsys.readouterr().out
    assert "5 left out:" in said
    assert ".: 1 images, such as x.png, which are in no folder named like 10_name" in said
    assert "reg/1_woman: 1 images" in said
    assert "regularization images have no counterpart" in said
    assert "5_cat/deeper: 1 images, such as 5_cat/deeper/y.png, which kohya does not read" in said
    assert "0_off: 1 images" in said


def test_a_folder_of_images_alone_is_one_of_a_dataset_config(kohya: Path, capsys: Captured) -> None:
    assert imported("kohya", kohya / "10_anna woman") == 0
    assert texts(kohya / "10_anna woman") == {"a.PNG": "anna, smiling", "b é.jpg": "anna woman"}
    flat = picture(kohya.parent / "flat" / "flat" / "a.png").parent
    assert imported("kohya", flat) == 0
    assert texts(flat) == {"a.png": ""}
    assert "repeats" not in capsys.readouterr().out.split("flat", 1)[1]


def test_kohya_s_parent_folder_is_refused_with_the_right_one(kohya: Path, capsys: Captured) -> None:
    code = main(["import", "kohya", "--images", str(kohya.parent), "--out", str(kohya / "out")])
    line = refused(kohya, capsys, code)
    assert line.endswith(f"no folder of them named like 10_name; give --images {kohya}")


def test_linked_folders_are_told_where_nothing_else_is_there(kohya: Path, capsys: Captured) -> None:
    links = kohya.parent / "links"
    links.mkdir()
    (links / "10_anna").symlink_to(kohya / "10_anna woman")
    assert imported("kohya", links) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "10_anna: is a link to a folder, which is not entered: move the images in" in first
    assert "no folder of them named like 10_name" in second


def test_only_files_of_the_caption_extension_are_read(kohya: Path, capsys: Captured) -> None:
    assert imported("kohya", kohya, "--caption-extension", "caption") == 0
    assert texts(kohya)["10_anna woman/a.PNG"] == "anna woman"
    assert texts(kohya)["5_cat/c.webp"] == "une légende"
    capsys.readouterr()
    words = ["--caption-extension", ".tags", "--out", str(kohya.parent / "other")]
    assert imported("kohya", kohya, *words) == 2
    assert "no image has a .tags file next to it" in capsys.readouterr().err


@pytest.mark.parametrize("flat", [True, False])
def test_kohya_s_masks_show_the_region(kohya: Path, flat: bool, capsys: Captured) -> None:
    masks = kohya / "conditioning"  # in the images' folder, and no images
    for name in ("10_anna woman/a.png", "5_cat/c.png"):
        square(masks / (Path(name).name if flat else name))
    assert imported("kohya", kohya, "--masks", masks, "--region", "face") == 0
    found = rows(kohya)
    with_mask = {name for name, row in found.items() if "face_mask" in row}
    assert with_mask == {"10_anna woman/a.PNG", "5_cat/c.webp"}
    mask = open_mask(kohya.parent / "out" / found["5_cat/c.webp"]["face_mask"])
    assert mask.histogram()[255] == 100
    said = capsys.readouterr().out
    assert "2 face masks" in said
    assert "2 images have no mask" in said
    assert "left out" not in said


def test_a_mask_of_two_images_is_refused(kohya: Path, capsys: Captured) -> None:
    picture(kohya / "5_cat" / "a.png")
    masks = square(kohya.parent / "masks" / "a.png").parent
    code = imported("kohya", kohya, "--masks", masks, "--region", "face")
    assert "would be the mask of 10_anna woman/a.PNG, 5_cat/a.png" in refused(kohya, capsys, code)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--region", "face"], "--region: give --masks DIR or --alpha-mask"),
        (["--alpha-mask"], "--alpha-mask: give --region face or hand"),
        (["--masks", "."], "--masks: give --region face or hand"),
        (["--masks", ".", "--alpha-mask"], "--masks and --alpha-mask: give one of the two"),
        (["--masks", "nowhere", "--region", "hand"], "nowhere: there is no such folder of masks"),
        (["--alpha-mask", "--region", "hand"], "no image has transparent pixels"),
        (["--caption-extension", "."], "must be an ending such as .txt"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    kohya: Path, words: list[str], expected: str, capsys: Captured
) -> None:
    assert expected in refused(kohya, capsys, imported("kohya", kohya, *words))


def with_alpha(path: Path, turned: bool = False) -> None:
    """Write a red photograph whose alpha is the square, stored sideways with EXIF or upright."""
    mask = Image.open(square(path.with_name("mask.png")))
    mask.load()
    path.with_name("mask.png").unlink()
    image = Image.new("RGB", SIZE, "red")
    image.putalpha(mask)
    exif = Image.Exif()
    if turned:
        exif[0x0112] = 6
        image = image.transpose(Image.Transpose.ROTATE_90)
    image.save(path, exif=exif)


@pytest.mark.parametrize("turned", [False, True])
def test_alpha_becomes_the_mask_and_the_photograph_stays_visible(
    kohya: Path, turned: bool, capsys: Captured
) -> None:
    with_alpha(kohya / "5_cat" / "d.png", turned)
    assert imported("kohya", kohya, "--alpha-mask", "--region", "hand") == 0
    row = rows(kohya)["5_cat/d.png"]
    out = kohya.parent / "out"
    assert open_mask(out / row["hand_mask"]).histogram()[255] == 100
    assert open_image(out / "5_cat" / "d.png").getcolors() == [(1200, (255, 0, 0))]
    assert "1 hand masks" in capsys.readouterr().out
    assert open_image(kohya / "5_cat" / "d.png").getpixel((0, 0)) == (255, 255, 255)  # as it was


def test_alpha_that_nobody_asked_for_is_told(kohya: Path, capsys: Captured) -> None:
    with_alpha(kohya / "5_cat" / "d.png")
    assert imported("kohya", kohya) == 0
    said = capsys.readouterr().out
    assert "1 images have an alpha channel, such as 5_cat/d.png" in said
    assert "--alpha-mask --region face or hand" in said


def test_colours_keep_their_profile_without_alpha(kohya: Path) -> None:
    path = kohya / "5_cat" / "d.png"
    with_alpha(path)
    image = Image.open(path)
    image.load()
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    image.save(path, icc_profile=profile)
    assert imported("kohya", kohya, "--alpha-mask", "--region", "hand") == 0
    assert Image.open(kohya.parent / "out" / "5_cat" / "d.png").info["icc_profile"] == profile


def test_an_image_that_alpha_hides_is_left_out(kohya: Path, capsys: Captured) -> None:
    with_alpha(kohya / "5_cat" / "d.png")
    Image.new("RGBA", SIZE, (255, 0, 0, 0)).save(kohya / "5_cat" / "c.webp")
    assert imported("kohya", kohya, "--alpha-mask", "--region", "hand") == 0
    assert "5_cat/c.webp" not in rows(kohya)
    assert "5_cat/c.webp: its alpha is at most 0 of 255" in capsys.readouterr().out


# OneTrainer


@pytest.fixture
def concept(tmp_path: Path) -> Path:
    root = tmp_path / "concept"
    for name in ("a.jpg", "sub/b.PNG", "sub/c.png"):
        picture(root / name)
    (root / "a.txt").write_bytes(b"\n  first prompt \rsecond\r\n")
    (root / "sub" / "b.TXT").write_text("löwe", encoding="utf-8")
    for name in ("a-masklabel.png", "sub/b-masklabel.png", "sub/b-condlabel.png"):
        square(root / name)
    return root


def test_onetrainer_s_files_belong_to_their_image(concept: Path, capsys: Captured) -> None:
    assert imported("onetrainer", concept, "--region", "face") == 0
    assert rows(concept) == {
        "a.jpg": {"file_name": "a.jpg", "text": "first prompt", "face_mask": "masks/face/a.png"},
        "sub/b.PNG": {
            "file_name": "sub/b.PNG",
            "text": "löwe",
            "conditioning_image": "sub/b-condlabel.png",
            "face_mask": "masks/face/sub/b.png",
        },
        "sub/c.png": {"file_name": "sub/c.png", "text": ""},
    }
    records, _ = load_records(concept.parent / "out", Reading(("face",), "absent"))
    assert [bool(record.regions["face"].mask) for record in records] == [True, True, False]
    assert (concept.parent / "out" / "sub" / "b-condlabel.png").is_file()
    said = capsys.readouterr().out
    assert "3 images, 2 captions, 2 face masks, 1 control images" in said
    assert "OneTrainer draws one of them" in said
    assert "looks for faces and hands where the data set has none" in said


def test_masks_without_a_region_are_left_and_told(concept: Path, capsys: Captured) -> None:
    assert imported("onetrainer", concept) == 0
    assert not any("face_mask" in row for row in rows(concept).values())
    said = capsys.readouterr().out
    assert "2 masks are not taken, such as a-masklabel.png" in said
    assert "--region face or hand" in said


def test_labels_that_do_not_fit_are_named(concept: Path, capsys: Captured) -> None:
    square(concept / "other-masklabel.png")
    square(concept / "a-condlabel.png", (20, 20))
    assert imported("onetrainer", concept) == 0
    said = capsys.readouterr().out
    assert "other-masklabel.png: no image has its name" in said
    assert "a-condlabel.png: is 20 x 20 px, its image 40 x 30" in said
    square(concept / "a-masklabel.png", (20, 20))
    words = ["--region", "face", "--out", str(concept.parent / "second")]
    assert imported("onetrainer", concept, *words) == 2
    assert "a-masklabel.png: is 20 x 20 px" in capsys.readouterr().err


def test_a_region_needs_masks(concept: Path, capsys: Captured) -> None:
    for path in concept.rglob("*-masklabel.png"):
        path.unlink()
    code = imported("onetrainer", concept, "--region", "hand")
    assert "no image has a mask (NAME-masklabel.png)" in refused(concept, capsys, code)


def test_images_of_one_stem_share_a_caption_but_no_mask(concept: Path, capsys: Captured) -> None:
    picture(concept / "a.png")
    code = imported("onetrainer", concept, "--region", "face")
    assert "a.jpg and a.png share a stem" in refused(concept, capsys, code)
    assert imported("onetrainer", concept) == 0
    assert texts(concept)["a.png"] == texts(concept)["a.jpg"] == "first prompt"


def test_an_import_into_its_own_folder_changes_no_file(concept: Path) -> None:
    before = {path: path.read_bytes() for path in concept.rglob("*") if path.is_file()}
    words = ["import", "onetrainer", "--images", str(concept), "--out", str(concept)]
    assert main([*words, "--region", "hand"]) == 0
    assert {path: path.read_bytes() for path in before} == before
    records, _ = load_records(concept, Reading(("hand",), "absent"))
    assert len(records) == 3


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("légende".encode("cp1252"), "is not UTF-8 (byte 1); save it as UTF-8"),
        ("legend".encode("utf-16-le"), "holds null bytes, so not UTF-8"),
        (b"0 0.5 0.5 0.1 0.2\n", "holds YOLO's boxes"),
    ],
)
@pytest.mark.parametrize("kind", ["kohya", "onetrainer"])
def test_captions_that_cannot_be_read_are_refused(
    tmp_path: Path, kind: str, content: bytes, expected: str, capsys: Captured
) -> None:
    path = picture(tmp_path / "images" / "a.png").with_suffix(".txt")
    path.write_bytes(content)
    line = refused(path.parent, capsys, imported(kind, path.parent))
    assert str(path) in line
    assert expected in line


@pytest.mark.parametrize("kind", ["kohya", "onetrainer"])
def test_every_wrong_caption_file_is_named_and_broken_images_left_out(
    tmp_path: Path, kind: str, capsys: Captured
) -> None:
    root = tmp_path / "images"
    for number in range(30):
        picture(root / f"{number:02}.png").with_suffix(".txt").write_bytes(b"\xe9")
    assert imported(kind, root) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 21
    assert "and 10 more caption files" in lines[-1]
    for path in root.glob("*.txt"):
        path.unlink()
    (root / "00.png").write_bytes(b"no image")
    assert imported(kind, root) == 0
    assert len(rows(root)) == 29
    assert "00.png: cannot be read as an image" in capsys.readouterr().out
    for path in root.glob("*.png"):
        path.write_bytes(b"")
    assert imported(kind, root, "--out", tmp_path / "other") == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("holds no image")


# imagefolder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "train"
    for name in ("a.jpg", "sub/b é.png", "c.png"):
        picture(root / name)
    return root


def as_csv(delimiter: str = ",", lineterminator: str = "\n") -> str:
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter, lineterminator=lineterminator)
    writer.writerow(["file_name", "text", "faces", "hands", "score"])
    writer.writerow(["a.jpg", 'a "quoted" one,\r\nof two lines; done', "[[1, 2, 3, 4.5]]", "", 1])
    writer.writerow(["sub/b é.png", "ein Löwe", "[]", "[[0,0,40,30]]", 2])
    writer.writerow(["c.png", "", "", "[]", 3])
    return file.getvalue()


EXPECTED: dict[str, dict[str, Any]] = {
    "a.jpg": {"text": 'a "quoted" one, of two lines; done', "faces": [[1, 2, 3, 4.5]]},
    "sub/b é.png": {"text": "ein Löwe", "faces": [], "hands": [[0, 0, 40, 30]]},
    "c.png": {"text": "", "hands": []},
}

FILES: dict[str, Callable[[], bytes]] = {
    "commas": lambda: as_csv().encode(),
    "CRLF": lambda: as_csv(lineterminator="\r\n").encode(),
    "Excel": lambda: as_csv(";", "\r\n").encode("utf-8-sig"),
    "Excel's Unicode text": lambda: as_csv("\t", "\r\n").encode("utf-16"),
    "empty lines": lambda: as_csv().replace("\nc.png", "\n\n\nc.png").encode(),
}


@pytest.mark.parametrize("form", FILES)
def test_every_csv_says_the_same(folder: Path, form: str, capsys: Captured) -> None:
    (folder / "metadata.csv").write_bytes(FILES[form]())
    assert imported("imagefolder", folder) == 0
    assert rows(folder) == {name: {"file_name": name} | row for name, row in EXPECTED.items()}
    said = capsys.readouterr().out
    assert "3 images, 2 captions, 1 faces, 1 hands" in said
    assert "columns that are not taken: 'score'" in said


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_other_tables_say_the_same_as_csv(folder: Path, suffix: str) -> None:
    listed = [
        {"file_name": name, "text": row["text"], **{k: row.get(k) for k in ("faces", "hands")}}
        for name, row in EXPECTED.items()
    ]
    path = folder / f"metadata.{suffix}"
    if suffix == "jsonl":
        path.write_text("\n".join(map(json.dumps, listed)))
    else:
        pq.write_table(pa.Table.from_pylist(listed), path)
    assert imported("imagefolder", folder) == 0
    assert rows(folder) == {name: {"file_name": name} | row for name, row in EXPECTED.items()}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "has no column 'file_name' for the images' file names (it has none)"),
        (b"file,text\na.jpg,x\n", "no column 'file_name' for the images' file names (it has 'fi"),
        (b"file_name,caption\na.jpg,x\n", "no column 'text' for the captions; give it as --capt"),
        (b"file_name,text,text\na.jpg,x,y\n", "two columns 'text'"),
        (b"file_name,text\na.jpg,x, y\n", "csv:2: has 3 fields, and the first line names 2; put"),
        (b"file_name,text\na.jpg\n", "csv:2: has 1 fields"),
        (b'file_name,text\na.jpg,"x\nc.png,y\n', "csv:2: is not CSV: unexpected end of data; is"),
        (b'file_name,text\n"a.jpg" x,y\n', "csv:2: is not CSV: "),
        (b"file_name,text\na.jpg," + b"x" * 200_000, "csv:2: is not CSV: field larger than"),
        ("file_name,text\na.jpg,légende\n".encode("cp1252"), "is not UTF-8 (after line"),
        ("file_name,text\na.jpg,x\n".encode("utf-16-le"), "holds null bytes, so not UTF-8"),
        (b"file_name,text\n../a.jpg,x\n", "csv:2: '../a.jpg' leads out of"),
        (b"file_name,text\n/a.jpg,x\n", "csv:2: '/a.jpg' leads out of"),
        (b"file_name,text\nsub\\..\\..\\a.jpg,x\n", "leads out of"),
        (b"file_name,text\n,x\n", "csv:2: file_name = '': must be the name of an image"),
        (b"file_name,text\nz.jpg,x\n", "holds no image that"),
        (b'file_name,text,faces\na.jpg,x,"[1"\n', "csv:2: faces = '[1': is not JSON"),
        (b'file_name,text,faces\na.jpg,x,"[[1, 2]]"\n', "csv:2: faces: [1, 2] is not [x, y, w"),
        (b'file_name,text,faces\na.jpg,x,"[[1, 2, 90, 9]]"\n', "is outside the image of 40 x 30"),
        (b'file_name,text,hands\na.jpg,x,"[[0.1, 0.1, 0.5, 0.5]]"\n', "as shares of the image"),
    ],
)
def test_a_wrong_csv_is_refused(
    folder: Path, content: bytes, expected: str, capsys: Captured
) -> None:
    (folder / "metadata.csv").write_bytes(content)
    assert expected in refused(folder, capsys, imported("imagefolder", folder))


def test_the_table_must_be_the_one(folder: Path, capsys: Captured) -> None:
    line = refused(folder, capsys, imported("imagefolder", folder))
    assert "holds none of metadata.csv, metadata.jsonl, metadata.parquet" in line
    (folder / "metadata.csv").write_text("file_name,text\na.jpg,x\n")
    code = main(["import", "imagefolder", "--images", str(folder.parent), "--out", "out"])
    assert refused(folder, capsys, code).endswith(f"give --images {folder}")
    (folder / "metadata.jsonl").write_text('{"file_name": "a.jpg", "text": "x"}')
    line = refused(folder, capsys, imported("imagefolder", folder))
    assert "holds metadata.csv and metadata.jsonl; rename what is not to be read" in line


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{", "jsonl:2: is not JSON"),
        ("[]", "jsonl:2: must be a JSON object"),
        ('{"text": "x"}', "jsonl:2: file_name = None: must be the name of an image"),
        (r'{"file_name": "c.png", "text": "\ud800"}', "jsonl:2: holds half a character"),
    ],
)
def test_a_wrong_json_line_is_refused(
    folder: Path, line: str, expected: str, capsys: Captured
) -> None:
    first = '{"file_name": "a.jpg", "text": "x"}'
    (folder / "metadata.jsonl").write_text(f"{first}\n{line}\n")
    assert expected in refused(folder, capsys, imported("imagefolder", folder))


# SimpleTuner


def test_a_table_names_images_in_many_ways(folder: Path, capsys: Captured) -> None:
    """By name or stem, with another case of ending, backslashes, or accents written apart."""
    picture(folder / "17.JPG")
    table = folder.parent / "captions.parquet"
    names = ["a.jpg", unicodedata.normalize("NFD", "sub\\b é.png"), "c", "17.jpg", "gone.png", "c"]
    columns = {"filename": names, "caption": ["x", None, " ", "y", "z", "again"], "width": [1] * 6}
    pq.write_table(pa.table(columns | {"tags": ["1", "2", "3", "4", "5", "6"]}), table)
    picture(folder / "unnamed.png")
    words = ["--table", str(table), "--fallback-caption-column", "tags"]
    assert imported("parquet", folder, *words) == 0
    assert texts(folder) == {"a.jpg": "x", "sub/b é.png": "2", "c.png": "3", "17.JPG": "y"}
    said = capsys.readouterr().out
    assert f"1 rows of {table} name images that are not there, such as 'gone.png'" in said
    assert "1 rows name an image that an earlier row names" in said
    assert "row 6: the earlier one is taken" in said
    assert "1 images are not in" in said
    assert "columns that are not taken: 'width'" in said


def test_whole_numbers_name_images_and_the_first_of_several_captions_is_taken(
    folder: Path, capsys: Captured
) -> None:
    picture(folder / "17.png")
    table = folder.parent / "captions.parquet"
    pq.write_table(pa.table({"id": [17], "cog": [["", "one", "two"]]}), table)
    words = ["--table", str(table), "--filename-column", "id", "--caption-column", "cog"]
    assert imported("parquet", folder, *words) == 0
    assert texts(folder) == {"17.png": "one"}
    assert "1 images have several captions, such as 17.png" in capsys.readouterr().out


def test_of_many_rows_only_the_columns_named_are_read(folder: Path) -> None:
    count = 10_000
    table = folder.parent / "captions.parquet"
    names = [f"{number}.png" for number in range(count)]
    names[9000], names[5] = "a.jpg", "c.png"
    columns = {"filename": names, "caption": [f"caption {n}" for n in range(count)]}
    pq.write_table(pa.table(columns | {"bytes": [b"x" * n for n in range(count)]}), table)
    with pq.ParquetFile(table) as file:
        start = file.metadata.row_group(0).column(2).data_page_offset
    with table.open("r+b") as content:
        content.seek(start)
        content.write(b"\xff" * 1000)
    with pytest.raises(OSError, match=r"."):
        pq.read_table(table)
    assert imported("parquet", folder, "--table", table) == 0
    assert texts(folder) == {"c.png": "caption 5", "a.jpg": "caption 9000"}


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"id": ["a.jpg"], "caption": ["x"]}, "no column 'filename' for the images' file names"),
        ({"filename": ["a.jpg"], "text": ["x"]}, "no column 'caption' for the captions"),
        ({"filename": [1.5], "caption": ["x"]}, "row 1: filename = 1.5: must be the name of an im"),
        ({"filename": [None], "caption": ["x"]}, "row 1: filename = None: must be the name"),
        ({"filename": ["a.jpg"], "caption": [7]}, "row 1: caption = 7: must be text, or a list"),
        ({"filename": ["a.jpg"], "caption": [{"en": "x"}]}, "must be text, or a list of texts"),
        ({"filename": ["a"], "caption": ["x"]}, "row 1: 'a' may be a.jpg or a.png: write the who"),
        ({"filename": ["../a.jpg"], "caption": ["x"]}, "row 1: '../a.jpg' leads out of"),
    ],
)
def test_a_wrong_table_is_refused(
    folder: Path, columns: dict[str, Any], expected: str, capsys: Captured
) -> None:
    picture(folder / "a.png")
    table = folder.parent / "captions.parquet"
    pq.write_table(pa.table(columns), table)
    assert expected in refused(folder, capsys, imported("parquet", folder, "--table", table))


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "flipped", "missing", "folder", "xlsx"])
def test_a_table_that_cannot_be_read_is_named(folder: Path, damage: str, capsys: Captured) -> None:
    table = folder.parent / ("captions.xlsx" if damage == "xlsx" else "captions.parquet")
    rng = np.random.default_rng(0)
    captions = ["".join(map(chr, rng.integers(97, 123, 50))) for _ in range(1000)]
    pq.write_table(pa.table({"filename": ["a.jpg"] * 1000, "caption": captions}), table)
    content = bytearray(table.read_bytes())
    content[100:4000] = bytes(3900)
    if damage == "missing":
        table.unlink()
    elif damage == "folder":
        table.unlink()
        table.mkdir()
    else:
        changed = {"empty": b"", "text": b"a,b\n", "cut": bytes(content[: len(content) // 2])}
        table.write_bytes(changed.get(damage, bytes(content)))
    line = refused(folder, capsys, imported("parquet", folder, "--table", table))
    assert str(table) in line


def test_a_data_set_that_is_there_is_not_replaced(folder: Path, capsys: Captured) -> None:
    (folder / "metadata.csv").write_text("file_name,text\na.jpg,x\n")
    assert imported("imagefolder", folder) == 0
    before = (folder.parent / "out" / "metadata.jsonl").read_bytes()
    assert imported("imagefolder", folder) == 2
    assert "holds a data set already" in capsys.readouterr().err
    assert (folder.parent / "out" / "metadata.jsonl").read_bytes() == before


# The real photographs


def test_photographs_come_out_the_same_of_every_folder(wholebody: Path, tmp_path: Path) -> None:
    lines = (wholebody / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    captions = {row["file_name"]: row["text"] for row in map(json.loads, lines)}
    expected = {name: " ".join(text.split()) for name, text in captions.items()}
    subset = tmp_path / "img" / "10_person"
    subset.mkdir(parents=True)
    for name, text in captions.items():
        (subset / name).symlink_to(wholebody / name)
        (subset / name).with_suffix(".txt").write_text(text, encoding="utf-8")
    table = tmp_path / "captions.parquet"
    stems = [int(Path(name).stem) for name in captions]
    listed = {"filename": [f"{stem:012}" for stem in stems], "caption": list(captions.values())}
    pq.write_table(pa.table(listed), table)
    pq.write_table(
        pa.table(listed).rename_columns(["file_name", "text"]), subset / "metadata.parquet"
    )
    for kind, more in (
        ("kohya", []),
        ("onetrainer", []),
        ("imagefolder", []),
        ("parquet", ["--table", str(table)]),
    ):
        out = tmp_path / kind
        words = ["import", kind, "--images", str(subset), "--out", str(out)]
        assert main([*words, *more]) == 0
        records, problems = load_records(out, Reading(("face", "hand"), "absent"))
        assert {record.id: record.text for record in records} == expected
        assert not problems
