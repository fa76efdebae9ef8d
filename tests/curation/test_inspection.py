"""`fairhuman inspect`: what it finds, what it shows, and that it shows what the trainer sees."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fairhuman.cli import main
from fairhuman.common.errors import DataError, UserError
from fairhuman.config import Data
from fairhuman.curation.inspection.duplicates import fingerprint, same
from fairhuman.curation.inspection.histogram import EDGES, histogram
from fairhuman.curation.inspection.inspect import CELL, View, inspect
from fairhuman.curation.inspection.page import render
from fairhuman.curation.inspection.rows import Inspection
from fairhuman.curation.inspection.thumbnails import SIDE
from fairhuman.data.dataset import People
from fairhuman.data.records import Reading, load_records

CONFIG = """
model: {pretrained: none}
data: {root: none, resolution: 64, crop: random, flip: true, mask_margin: 2}
train: {output_dir: none, steps: 1, precision: fp32, seed: 3}
deepspeed: {zero_optimization: {stage: 1}}
"""


def test_the_page_is_written_into_the_folder_that_it_shows(
    people: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data"
    shutil.copytree(people, data)
    assert main(["inspect", str(data), "--resolution", "64"]) == 0
    assert f"see {data / 'inspect.html'}" in capsys.readouterr().out
    assert (data / "inspect.html").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    # It is no image: looking again finds the same.
    before = (data / "inspect.html").read_bytes()
    assert main(["inspect", str(data), "--resolution", "64"]) == 0
    assert (data / "inspect.html").read_bytes() == before


def noise(seed: int, size: tuple[int, int] = (400, 200)) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 255, (8, 16, 3), dtype=np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images without anything wrong."""
    root = tmp_path / "pictures"
    (root / "masks").mkdir(parents=True)
    rows = []
    for i in range(6):
        noise(i).save(root / f"{i}.png")
        row: dict[str, Any] = {"file_name": f"{i}.png", "text": f"number {i}"}
        rows.append(row | {"faces": [[180, 20, 50, 60]], "hands": [[150, 120, 40, 40]]})
    mask = Image.new("L", (400, 200))
    mask.paste(255, (150, 120, 190, 160))
    mask.save(root / "masks" / "1.png")
    rows[1]["hand_mask"] = "masks/1.png"
    write(root, rows)
    return root


def rows(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "metadata.jsonl").read_text().splitlines()]


def write(root: Path, lines: list[dict[str, Any]]) -> None:
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))


def look(root: Path, resolution: int = 512) -> Inspection:
    return inspect(root, View.plain(root, resolution))


def test_a_sound_data_set_has_no_findings(folder: Path) -> None:
    found = look(folder)
    assert found.by_kind() == {}
    assert found.summary() == (
        "6 images, 6 faces, 6 hands, seen at 512 px; 0 images have something wrong"
    )
    face = found.samples[0].sizes_of("face")[0]
    assert (face.width, face.height) == (50 * 512 / 200, 60 * 512 / 200)


def invert(root: Path, row: dict[str, Any]) -> None:
    mask = Image.open(root / "masks" / "1.png")
    Image.eval(mask, lambda value: 255 - value).save(root / "masks" / "1.png")


def mirror(root: Path, row: dict[str, Any]) -> None:
    mask = Image.open(root / "masks" / "1.png")
    mask.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(root / "masks" / "1.png")


def repeat(root: Path, row: dict[str, Any]) -> None:
    shutil.copyfile(root / "0.png", root / "1.png")


def save_anew(root: Path, row: dict[str, Any]) -> None:
    image = Image.open(root / "0.png").resize((300, 150)).resize((400, 200))
    image.save(root / "1.jpg", quality=70)
    (root / "1.png").unlink()
    row.update(file_name="1.jpg")


def blacken(root: Path, row: dict[str, Any]) -> None:
    Image.new("L", (400, 200)).save(root / "masks" / "1.png")


MISTAKES: dict[str, tuple[str, Callable[[Path, dict[str, Any]], Any]]] = {
    "inverted mask": ("inverted", invert),
    "mask of another orientation": ("disagree", mirror),
    "black mask": ("empty", blacken),
    "the same file": ("duplicate", repeat),
    "the same picture": ("duplicate", save_anew),
    "outside the crop": ("outside", lambda root, row: row.update(faces=[[10, 20, 50, 60]])),
    "cut by the crop": ("cut", lambda root, row: row.update(faces=[[80, 20, 50, 60]])),
    "tiny": ("tiny", lambda root, row: row.update(faces=[[180, 20, 5, 60]])),
    "not annotated": ("unannotated", lambda root, row: row.pop("faces")),
    "twice": ("overlap", lambda root, row: row["faces"].append([181, 20, 50, 60])),
    "no caption": ("caption", lambda root, row: row.update(text=" ")),
    "nobody": ("none", lambda root, row: [row.update(faces=[], hands=[]), row.pop("hand_mask")]),
    "no image": ("unusable", lambda root, row: (root / "1.png").write_text("no image")),
    "box outside": ("unusable", lambda root, row: row.update(faces=[[380, 20, 50, 60]])),
    "no line for an image": ("unusable", lambda root, row: noise(9).save(root / "9.png")),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_is_found_alone_and_comes_first(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    kind, change = MISTAKES[name]
    lines = rows(folder)
    change(folder, lines[1])
    write(folder, lines)
    found = look(folder)
    assert list(found.by_kind()) == [kind]
    (sample,) = found.by_kind()[kind]
    assert found.worst_first()[0] is sample
    out = tmp_path / "page.html"
    words = ["inspect", str(folder), "--resolution", "512", "--out", str(out)]
    assert main(words) == 0
    note = kind in ("cut", "none")
    capsys.readouterr()
    assert main([*words, "--strict"]) == (0 if note else 1)
    assert (f"{sample.name}: " in capsys.readouterr().out) is not note
    assert main([*words, "--strict", "--allow", kind]) == 0
    assert out.is_file()


def test_lines_that_cannot_be_read_are_shown_with_the_rest(folder: Path) -> None:
    with (folder / "metadata.jsonl").open("a") as lines:
        lines.write('\n{"file_name": \n')
    found = look(folder)
    assert len(found.samples) == 7
    assert found.worst_first()[0].findings[0].text.startswith("is not JSON")
    assert list(found.by_kind()) == ["unusable"]


class Reader(HTMLParser):
    """Checks that tags are closed in their order, and collects what they point to."""

    VOID = ("meta", "img")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.ids.add(found.get("id") or "")
        self.links += [value for key in ("href", "src") if (value := found.get(key))]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_no_other_file(folder: Path) -> None:
    lines = rows(folder)
    lines[1] |= {"text": "<script>alert('&')</script>", "faces": [[10, 20, 50, 60]]}
    lines[2] |= {"faces": [[10, 20, 50, 60]]}
    write(folder, lines)
    for limit in (1, 300):
        text = render(look(folder), limit)
        reader = Reader()
        reader.feed(text)
        assert reader.open == []
        assert all(link.startswith(("data:image/jpeg;base64,", "#")) for link in reader.links)
        assert {link[1:] for link in reader.links if link[0] == "#"} <= reader.ids
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert text.count("data:image/jpeg") == 6
    few = render(look(folder), limit=1)
    assert few.count("data:image/jpeg") == 1
    assert "The first 1 of 6" in few


def test_a_histogram_counts_every_region() -> None:
    sides = [3.0, 9.0, 17.0, 17.0, 500.0, 5000.0]
    counts = [int(n) for n in re.findall(r"<title>(\d+)</title>", histogram(sides, 8, "red", "x"))]
    assert sum(counts) == len(sides)
    assert len(counts) == len(EDGES) - 1
    assert (counts[0], counts[-1]) == (1, 1)
    assert sum(map(int, re.findall(r"<title>(\d+)</title>", histogram([], 8, "red", "x")))) == 0


def test_duplicates_are_found_among_many_and_others_are_not() -> None:
    pictures = {f"{i}": noise(i) for i in range(60)}
    pictures["again"] = noise(7, (200, 100))
    pictures |= {f"even {i}": Image.new("RGB", (50, 50), (i, i, i)) for i in range(3)}
    prints = {name: fingerprint(image) for name, image in pictures.items()}
    assert same(prints, {name: name for name in prints}) == {"again": "7"}


def test_train_view_shows_what_the_trainer_gets(people: Path, tmp_path: Path) -> None:
    config, out = tmp_path / "config.yaml", tmp_path / "page.html"
    config.write_text(CONFIG)
    words = ["inspect", str(people), "--train-view", "--config", str(config), "--epoch", "2"]
    assert main([*words, "--out", str(out), "--limit", "1000"]) == 0
    shown = re.findall(
        r'src="data:image/jpeg;base64,([^"]+)" alt="" loading="lazy">\n<p><b>([^<]+)',
        out.read_text(),
    )
    assert len(shown) == 24
    data = Data(root=str(people), resolution=64, crop="random", flip=True, mask_margin=2)
    records, _ = load_records(people, Reading(("face", "hand")))
    trainer = People(records, ["face", "hand"], data, seed=3, cell=CELL)
    by_name = {record.id: index for index, record in enumerate(records)}
    for content, name in shown:
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(content)))).astype(float)
        batch = trainer[2, by_name[name]]
        assert batch.pixels is not None
        pixels = ((batch.pixels[0].permute(1, 2, 0).numpy() + 1) * 127.5).repeat(5, 0).repeat(5, 1)
        assert picture.shape == (SIDE, 2 * SIDE, 3)
        assert np.abs(picture[:, :SIDE] - pixels).mean() < 8  # JPEG
        tinted = np.abs(picture[:, SIDE:] - 0.6 * picture[:, :SIDE]).mean(axis=2)
        cells = tinted.reshape(8, SIDE // 8, 8, SIDE // 8).mean(axis=(1, 3))
        covered = batch.masks[0].max(dim=0).values.numpy()
        assert cells[covered > 0.5].min(initial=255) > cells[covered == 0].max(initial=0)


def test_mistakes_of_the_command_are_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "page.html")]
    assert main(["inspect", str(folder), "--train-view", *out]) == 2
    assert "--train-view and --config go together" in capsys.readouterr().err
    assert main(["inspect", str(folder), "--resolution", "100", *out]) == 2
    assert "--resolution 100: must be" in capsys.readouterr().err
    assert main(["inspect", str(folder), "--allow", "all", *out]) == 2
    assert "--allow all: must be one of" in capsys.readouterr().err
    assert main(["inspect", str(folder), "--out", str(tmp_path / "no" / "page.html")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()
    with pytest.raises(DataError, match="holds no metadata"):
        look(tmp_path)
    with pytest.raises(UserError):
        View.plain(folder, 12)
