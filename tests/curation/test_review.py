"""`fairhuman review` over HTTP: who is let in, what is saved, and what is refused."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette", reason="starlette is not installed: the extra review")
pytest.importorskip("uvicorn", reason="uvicorn is not installed: the extra review")

from square_detector import SquareDetector
from starlette.testclient import TestClient

from fairhuman.cli import main
from fairhuman.common.errors import UserError
from fairhuman.curation.annotation.annotate import annotate
from fairhuman.curation.annotation.detector import DetectorChoice
from fairhuman.curation.inspection.inspect import CELL, View
from fairhuman.curation.inspection.thumbnails import trained
from fairhuman.curation.review.pictures import TRAINED_SIDE
from fairhuman.curation.review.server import make_app
from fairhuman.curation.review.session import Session
from fairhuman.data.dataset import People
from fairhuman.data.records import Reading, load_records

TOKEN = "a-token"
ORIGIN = "http://127.0.0.1:8000"
SIZE = (400, 200)


def picture(seed: int) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 255, (8, 16, 3), dtype=np.uint8)
    return Image.fromarray(values).resize(SIZE, Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images without anything wrong; the last has a hand mask, and a key of its own."""
    root = tmp_path / "pictures"
    (root / "masks").mkdir(parents=True)
    lines: list[dict[str, Any]] = []
    for i in range(3):
        picture(i).save(root / f"{i}.png")
        line = {"file_name": f"{i}.png", "text": f"number {i}"}
        lines.append(line | {"faces": [[180, 20, 50, 60]], "hands": [[150, 120, 40, 40]]})
    mask = Image.new("L", SIZE)
    mask.paste(255, (150, 120, 190, 160))
    mask.save(root / "masks" / "2.png")
    lines[2] |= {"hand_mask": "masks/2.png", "licence": {"by": "é"}}
    write(root, lines)
    return root


def write(root: Path, lines: list[dict[str, Any]]) -> None:
    (root / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def rows(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "metadata.jsonl").read_text().splitlines()]


@contextmanager
def reviewing(root: Path, view: View | None = None) -> Iterator[TestClient]:
    """A client of the page's own origin; its addresses begin below the token."""
    session = Session(root, view or View.plain(root, 512), progress=False)
    try:
        app = make_app(session, TOKEN)
        yield TestClient(app, base_url=f"{ORIGIN}/{TOKEN}/", headers={"origin": ORIGIN})
    finally:
        session.close()


def get(client: TestClient, path: str) -> Any:
    answer = client.get(path)
    assert answer.status_code == 200, answer.text
    return answer.json()


def edit_of(state: dict[str, Any]) -> dict[str, Any]:
    """What the page sends where a human changes nothing."""
    regions = {
        name: found and {"boxes": found["boxes"], "mask": found["mask"]}
        for name, found in state["regions"].items()
    }
    parts = {key: state[key] for key in ("version", "text", "done")}
    return parts | {"regions": regions}


def png(mask: Image.Image) -> bytes:
    content = io.BytesIO()
    mask.save(content, "png")
    return content.getvalue()


def test_only_the_page_itself_is_answered(folder: Path) -> None:
    with reviewing(folder) as client:
        for path in ("", "app.js", "style.css", "konva.min.js", "konva.LICENSE", "api/session"):
            answer = client.get(path)
            assert answer.status_code == 200, path
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert answer.headers["referrer-policy"] == "same-origin"
        for url in ("/", "/api/session", "/wrong/api/session", f"/{TOKEN}x/api/session"):
            assert client.get(f"{ORIGIN}{url}").status_code == 404, url


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "localhost:9", "origin": "http://localhost:9"}, 200),  # a tunnel's other port
        ({"host": "evil.example"}, 403),
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"host": "["}, 403),
        ({"host": "evil.example@127.0.0.1"}, 403),
        ({"host": "evil.example", "origin": "http://evil.example"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://127.0.0.1:9999"}, 403),
        ({"origin": "null"}, 403),
    ],
)
def test_other_hosts_and_origins_are_refused(
    folder: Path, headers: dict[str, str], status: int
) -> None:
    with reviewing(folder) as client:
        assert client.get("api/session", headers=headers).status_code == status
        body = edit_of(get(client, "api/images/0")) | {"text": "changed"}
        before = (folder / "metadata.jsonl").read_bytes()
        saved = client.put("api/images/0", json=body, headers=headers)
        assert saved.status_code == status
        assert ((folder / "metadata.jsonl").read_bytes() == before) == (status != 200)


def test_a_change_without_an_origin_is_refused(folder: Path) -> None:
    with reviewing(folder) as client:
        body = edit_of(get(client, "api/images/0"))
        del client.headers["origin"]
        assert client.get("api/images/0").status_code == 200
        assert client.put("api/images/0", json=body).status_code == 403


def test_no_path_leads_to_another_file(folder: Path) -> None:
    (folder.parent / "secret.png").write_bytes(png(Image.new("L", SIZE, 255)))
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    lines = rows(folder)
    lines += [{"file_name": "../secret.png", "text": "", "faces": [], "hands": []}]
    write(folder, lines)
    with reviewing(folder) as client:
        names = {image["name"]: image["number"] for image in get(client, "api/session")["images"]}
        for name in ("../secret.png", "link.png"):
            answer = client.get(f"api/images/{names[name]}/photograph/160")
            assert answer.status_code == 422, name
            assert "is not in the data's folder" in answer.json()["error"]
        for path in (
            "%2e%2e/%2e%2e/server.py",
            "..%2fserver.py",
            "static/../../server.py",
            "api/images/99/photograph/160",
            "api/images/-1/photograph/160",
            "api/images/0/photograph/9999",
            "api/images/0/mask?name=../secret.png",
            "api/images/0/mask?name=masks/2.png",  # another image's
            "api/images/0/mask?name=metadata.jsonl",
        ):
            assert client.get(path).status_code == 404, path


def test_what_is_saved_changes_one_row_alone(folder: Path) -> None:
    before = rows(folder)
    with reviewing(folder) as client:
        edit = edit_of(get(client, "api/images/1"))
        edit["text"] = "wörds"
        edit["regions"]["face"]["boxes"] = [[10.5, 20, 30, 40]]
        edit["regions"]["hand"] = {"boxes": [], "mask": None}
        state = client.put("api/images/1", json=edit).json()
        after = rows(folder)
        assert after[0] == before[0]
        assert after[2] == before[2]
        assert after[1]["text"] == "wörds"
        assert after[1]["faces"] == [[10.5, 20, 30, 40]]
        assert after[1]["hands"] == []  # none here, which is not the same as nobody looked
        assert state == get(client, "api/images/1")
        assert state["regions"]["face"]["owner"] == "human"


def test_looking_changes_nothing(folder: Path) -> None:
    before = (folder / "metadata.jsonl").read_bytes()
    with reviewing(folder) as client:
        for number in range(3):
            state = get(client, f"api/images/{number}")
            saved = client.put(f"api/images/{number}", json=edit_of(state)).json()
            assert saved["version"] == state["version"]
    assert (folder / "metadata.jsonl").read_bytes() == before


def test_an_object_that_only_the_records_have_is_a_region(folder: Path) -> None:
    lines = rows(folder)
    lines[0] |= {"dogs": [[5, 5, 20, 20]], "tags": ["a", "b"], "cars": []}
    lines[1] |= {"hat_mask": "masks/2.png"}
    write(folder, lines)
    with reviewing(folder) as client:
        assert list(get(client, "api/session")["regions"]) == ["face", "hand", "dog", "hat"]
        edit = edit_of(get(client, "api/images/2"))
        assert edit["regions"]["dog"] is None
        edit["regions"]["dog"] = {"boxes": [[1, 2, 30, 40]], "mask": None}
        assert client.put("api/images/2", json=edit).status_code == 200
    assert rows(folder)[2]["dogs"] == [[1, 2, 30, 40]]


@pytest.mark.parametrize("changed", ["row", "mask"])
def test_what_somebody_else_changed_is_not_overwritten_unasked(folder: Path, changed: str) -> None:
    with reviewing(folder) as client:
        mine = edit_of(get(client, "api/images/2")) | {"text": "mine"}
        if changed == "row":
            lines = rows(folder)
            lines[2]["faces"] = [[1, 1, 50, 50]]
            write(folder, lines)
        else:
            Image.new("L", SIZE, 255).save(folder / "masks" / "2.png")
        before = (folder / "metadata.jsonl").read_bytes()
        refused = client.put("api/images/2", json=mine)
        assert refused.status_code == 409
        assert (folder / "metadata.jsonl").read_bytes() == before
        theirs = refused.json()["state"]
        assert theirs == get(client, "api/images/2")
        mine["version"] = theirs["version"]
        assert client.put("api/images/2", json=mine).status_code == 200
        assert rows(folder)[2]["text"] == "mine"


def test_another_row_that_somebody_changed_is_kept(folder: Path) -> None:
    with reviewing(folder) as client:
        mine = edit_of(get(client, "api/images/1")) | {"text": "mine"}
        lines = rows(folder)
        lines[0]["text"] = "theirs"
        write(folder, [lines[2], lines[1], lines[0]])
        assert client.put("api/images/1", json=mine).status_code == 200
    assert [row["text"] for row in rows(folder)] == ["number 2", "mine", "theirs"]


def test_a_row_that_is_gone_conflicts(folder: Path) -> None:
    with reviewing(folder) as client:
        mine = edit_of(get(client, "api/images/1")) | {"text": "mine"}
        write(folder, rows(folder)[:1])
        assert client.put("api/images/1", json=mine).status_code == 409
    assert len(rows(folder)) == 1


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"face": {"boxes": [[390, 0, 50, 50]]}}, "is outside the image of 400 x 200 px"),
        ({"face": {"boxes": [[0, 0, 0, 50]]}}, "has no area"),
        ({"face": {"boxes": [[0, 0, 1]]}}, "regions.face.boxes"),
        ({"face": {"boxes": "all"}}, "regions.face.boxes"),
        ({"face": {"boxes": [], "mask": "/etc/passwd"}}, "is not its own"),
        ({"face": {"boxes": [], "mask": "../secret.png"}}, "is not its own"),
        ({"file_name": {"boxes": []}}, "has no such region"),
        ({"face": {"boxes": [], "more": 1}}, "regions.face.more"),
    ],
)
def test_what_could_not_be_trained_on_is_refused(
    folder: Path, part: dict[str, Any], words: str
) -> None:
    before = (folder / "metadata.jsonl").read_bytes()
    with reviewing(folder) as client:
        edit = edit_of(get(client, "api/images/0"))
        edit["regions"] |= part
        answer = client.put("api/images/0", json=edit)
        assert answer.status_code == 422
        assert words in answer.json()["error"]
        assert "\n" not in answer.json()["error"]
    assert (folder / "metadata.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"[" * 9999, 422),
        (b'{"version": NaN}', 422),
        (b"\xff\xfe", 422),
        (b" " * 2**21, 413),
    ],
)
def test_a_body_that_is_no_edit_is_refused(folder: Path, body: bytes, status: int) -> None:
    with reviewing(folder) as client:
        assert client.put("api/images/0", content=body).status_code == status


def test_half_a_character_is_refused(folder: Path) -> None:
    with reviewing(folder) as client:
        edit = edit_of(get(client, "api/images/0")) | {"text": "?"}
        body = json.dumps(edit).replace('"?"', '"\\ud800"')
        assert client.put("api/images/0", content=body).status_code == 422


def test_a_full_disk_leaves_what_was_there(folder: Path) -> None:
    before = (folder / "metadata.jsonl").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with reviewing(folder) as client:
        edit = edit_of(get(client, "api/images/0")) | {"text": "long " * 1000}
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, limits[1]))
        try:
            answer = client.put("api/images/0", json=edit)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert answer.status_code == 507
        assert "metadata.jsonl: cannot be written" in answer.json()["error"]
        assert (folder / "metadata.jsonl").read_bytes() == before
        assert not list(folder.glob("*.partial"))
        assert client.put("api/images/0", json=edit).status_code == 200  # tried again
    assert rows(folder)[0]["text"] == edit["text"]


def test_a_painted_mask_is_what_the_trainer_takes(folder: Path) -> None:
    painted = Image.new("RGBA", SIZE, "black")
    painted.paste((255, 255, 255, 255), (10, 20, 60, 90))
    with reviewing(folder) as client:
        name = client.post("api/images/0/masks/face", content=png(painted)).json()["mask"]
        edit = edit_of(get(client, "api/images/0"))
        edit["regions"]["face"]["mask"] = name
        assert client.put("api/images/0", json=edit).status_code == 200
        shown = client.get("api/images/0/mask", params={"name": name})
    expected = np.asarray(painted.convert("L"))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(shown.content))), expected)
    records, _ = load_records(folder, Reading(("face", "hand")))
    assert records[0].regions["face"].mask == folder / name
    with Image.open(folder / name) as kept:
        assert kept.mode == "L"
        assert np.array_equal(np.asarray(kept), expected)


def test_masks_that_no_row_names_are_removed_at_the_end(folder: Path) -> None:
    with reviewing(folder) as client:
        names = []
        for width in (50, 60):
            mask = Image.new("L", SIZE)
            mask.paste(255, (0, 0, width, 50))
            answer = client.post("api/images/2/masks/hand", content=png(mask))
            names.append(answer.json()["mask"])
            edit = edit_of(get(client, "api/images/2"))
            edit["regions"]["hand"]["mask"] = names[-1]
            assert client.put("api/images/2", json=edit).status_code == 200
        assert (folder / names[0]).exists()  # undoing may ask for it
        edit = edit_of(get(client, "api/images/2"))
        edit["regions"]["hand"]["mask"] = names[0]
        assert client.put("api/images/2", json=edit).status_code == 200
    assert rows(folder)[2]["hand_mask"] == names[0]
    assert (folder / names[0]).exists()
    assert not (folder / names[1]).exists()
    assert (folder / "masks" / "2.png").exists()  # not painted here: it is its owner's


@pytest.mark.parametrize(
    "body",
    [b"", b"no picture", png(Image.new("L", (400, 201))), png(Image.new("L", SIZE))[:-30]],
)
def test_what_is_no_mask_of_the_image_is_refused(folder: Path, body: bytes) -> None:
    with reviewing(folder) as client:
        assert client.post("api/images/0/masks/face", content=body).status_code == 422
        assert client.post("api/images/0/masks/nose", content=body).status_code == 404
    assert not list((folder / "masks").rglob("*.face.*"))


def test_the_soft_rim_of_an_erased_stroke_is_black(folder: Path) -> None:
    with reviewing(folder) as client:
        faint = png(Image.new("L", SIZE, 90))  # which a mask must not be
        name = client.post("api/images/0/masks/face", content=faint).json()["mask"]
    assert not (folder / name).exists()
    with reviewing(folder) as client:
        name = client.post("api/images/0/masks/face", content=faint).json()["mask"]
        assert np.asarray(Image.open(folder / name)).max() == 0


def test_the_trained_picture_is_the_trainers_sample(folder: Path) -> None:
    view = View.plain(folder, 256)
    with reviewing(folder, view) as client:
        shown = client.get("api/images/2/trained").content
        state = get(client, "api/images/2")
    records, _ = load_records(folder, Reading(("face", "hand")))
    batch = People(records, view.regions, view.data, 0, CELL)[0, 2]
    assert batch.pixels is not None
    masks = {"face": batch.masks[0, 0].numpy(), "hand": batch.masks[0, 1].numpy()}
    expected = trained(batch.pixels[0].numpy(), masks, TRAINED_SIDE)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(shown))), np.asarray(expected))
    assert state["crop"] == [100, 0, 200, 200]  # the middle square of 400 x 200


def test_findings_come_worst_first_and_follow_the_edits(folder: Path) -> None:
    lines = rows(folder)
    lines[1]["faces"] = [[0, 0, 9, 9]]  # outside of the crop
    lines[2]["text"] = ""
    write(folder, lines)
    picture(7).save(folder / "new.png")
    (folder / "2.png").write_bytes(b"no image")
    with reviewing(folder) as client:
        images = get(client, "api/session")["images"]
        assert [image["name"] for image in images] == ["2.png", "new.png", "1.png", "0.png"]
        assert [image["kinds"] for image in images] == [
            ["unusable"],
            ["unusable"],
            ["outside"],
            [],
        ]
        edit = edit_of(get(client, "api/images/1"))
        edit["regions"]["face"]["boxes"] = []
        saved = client.put("api/images/1", json=edit).json()
        assert saved["kinds"] == []
        broken = get(client, "api/images/2")
        assert broken["size"] is None
        assert "cannot be read as an image" in broken["problem"]


def test_an_image_that_no_row_names_gets_one(folder: Path) -> None:
    (folder / "metadata.jsonl").unlink()
    with reviewing(folder) as client:
        edit = edit_of(get(client, "api/images/1"))
        assert edit["regions"] == {"face": None, "hand": None}
        edit["regions"]["face"] = {"boxes": [[10, 10, 50, 50]], "mask": None}
        saved = client.put("api/images/1", json=edit).json()
        assert saved["findings"][0] == [
            "outside",
            "a face is outside the crop",
        ]
    (row,) = rows(folder)
    assert row["file_name"] == "1.png"
    assert row["faces"] == [[10, 10, 50, 50]]
    assert "hands" not in row  # nobody looked


def test_a_second_start_continues(folder: Path) -> None:
    with reviewing(folder) as client:
        assert get(client, "api/session")["at"] is None
        edit = edit_of(get(client, "api/images/0")) | {"done": True}
        assert client.put("api/images/0", json=edit).json()["done"]
        assert client.put("api/at/2").status_code == 204
        assert client.put("api/at/9").status_code == 404
    with reviewing(folder) as client:
        overview = get(client, "api/session")
    assert overview["at"] == 2
    assert [image["name"] for image in overview["images"] if image["done"]] == ["0.png"]


@pytest.mark.parametrize("kept", [b"", b"[]", b'{"at": 1, "done": [2]}', b"\xff"])
def test_progress_that_was_damaged_begins_anew(folder: Path, kept: bytes) -> None:
    (folder / ".fairhuman").mkdir()
    (folder / ".fairhuman" / "review.json").write_bytes(kept)
    with reviewing(folder) as client:
        overview = get(client, "api/session")
        assert (overview["at"], any(image["done"] for image in overview["images"])) == (None, False)


def squares(root: Path) -> None:
    """Three images with a red and a green square, which the detector finds."""
    root.mkdir()
    for i in range(3):
        image = Image.new("RGB", (120, 90), (80, 80, 200))
        image.paste((255, 0, 0), (10 + i, 10, 40, 40))
        image.paste((0, 255, 0), (60 + i, 40, 90, 80))
        image.save(root / f"{i}.png")
        (root / f"{i}.txt").write_text(f"file {i}")


def choice(version: str) -> DetectorChoice:
    name = f"{SquareDetector.__module__}:{SquareDetector.__qualname__}"
    return DetectorChoice(name, {"threshold": 0.5, "version": version})


def test_annotate_keeps_what_a_human_did(tmp_path: Path) -> None:
    root = tmp_path / "squares"
    squares(root)
    annotate(root, choice("1"), jobs=1, progress=False)
    found = rows(root)
    with reviewing(root) as client:
        assert get(client, "api/images/0")["regions"]["hand"]["owner"] == "detector"
        moved = edit_of(get(client, "api/images/0")) | {"text": "mine"}
        moved["regions"]["face"]["boxes"] = [[0, 0, 33, 33]]
        assert client.put("api/images/0", json=moved).status_code == 200
        confirmed = edit_of(get(client, "api/images/1")) | {"done": True}
        assert client.put("api/images/1", json=confirmed).status_code == 200
    for i in range(3):
        (root / f"{i}.txt").write_text(f"other {i}")
    done = annotate(root, choice("2"), jobs=1, progress=False)
    after = rows(root)
    assert done.kept == 3  # a face that was moved, a face and a hand that were confirmed
    assert after[0]["faces"] == [[0, 0, 33, 33]]
    assert after[0]["text"] == "mine"
    assert after[1]["faces"] == found[1]["faces"]
    by = [[row["detected"][region]["by"] for region in ("face", "hand")] for row in after]
    second = "squares 2, threshold 0.5"
    assert by == [["human", second], ["human", "human"], [second, second]]
    assert [row["text"] for row in after[1:]] == ["other 1", "other 2"]


def test_annotate_says_which_image_was_replaced_since(tmp_path: Path) -> None:
    root = tmp_path / "squares"
    squares(root)
    with reviewing(root) as client:
        edit = edit_of(get(client, "api/images/0"))
        edit["regions"] = {"face": {"boxes": []}, "hand": {"boxes": []}}
        assert client.put("api/images/0", json=edit).status_code == 200
    Image.new("RGB", (120, 90)).save(root / "0.png")
    assert annotate(root, choice("1"), jobs=1, progress=False).replaced == ["0.png"]


def test_nobody_else_annotates_meanwhile(folder: Path) -> None:
    with reviewing(folder):
        for act in (
            lambda: Session(folder, View.plain(folder, 512), progress=False),
            lambda: annotate(folder, choice("1"), jobs=1, progress=False),
        ):
            with pytest.raises(UserError, match="is in use by process"):
                act()
    Session(folder, View.plain(folder, 512), progress=False).close()


@pytest.mark.nightly
def test_ten_thousand_images_are_not_decoded(tmp_path: Path) -> None:
    root = tmp_path / "many"
    root.mkdir()
    whole = png(picture(0))
    (root / "0.png").write_bytes(whole[: len(whole) // 2])  # its header is all that is right
    for i in range(1, 10_000):
        os.link(root / "0.png", root / f"{i}.png")
    line = {"text": "one", "faces": [[180, 20, 50, 60]], "hands": []}
    write(root, [{"file_name": f"{i}.png"} | line for i in range(10_000)])
    with reviewing(root) as client:
        images = get(client, "api/session")["images"]
        assert len(images) == 10_000
        assert not any(image["kinds"] for image in images)
        edit = edit_of(get(client, "api/images/7000")) | {"text": "another"}
        assert client.put("api/images/7000", json=edit).status_code == 200
    after = rows(root)
    assert (len(after), after[7000]["text"], after[7001]["text"]) == (10_000, "another", "one")


def test_a_set_that_cannot_be_reviewed_is_told_in_a_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    config = tmp_path / "config.yaml"
    config.write_text(
        "model: {pretrained: none}\n"
        "data: {root: none, columns: {text: caption}}\n"
        "train: {output_dir: none, steps: 1, precision: fp32}\n"
        "deepspeed: {zero_optimization: {stage: 1}}\n"
    )
    for arguments, words in [
        ([str(tmp_path / "none")], "there is no such folder"),
        ([str(tmp_path / "empty")], "holds no image"),
        ([str(folder), "--port", "99999"], "--port 99999: must be between 0 and 65535"),
        ([str(folder), "--config", str(config)], "data.columns = {'text': 'caption'}"),
        ([str(folder), "--resolution", "100"], "must be at least 64, a multiple of 8"),
    ]:
        assert main(["review", *arguments]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
    assert not (tmp_path / "empty" / "metadata.jsonl").exists()


def test_a_session_ends_where_metadata_was_broken_meanwhile(folder: Path) -> None:
    with reviewing(folder) as client:
        painted = png(Image.new("L", SIZE, 255))
        name = client.post("api/images/0/masks/face", content=painted).json()["mask"]
        (folder / "metadata.jsonl").write_text('{"file_name')
        assert client.get("api/images/0").status_code == 422
    assert (folder / name).exists()  # a row may name it
    with pytest.raises(UserError, match=r"metadata\.jsonl:1"):
        Session(folder, View.plain(folder, 512), progress=False)


def test_without_starlette_the_extra_is_named(folder: Path) -> None:
    program = (
        "import sys; sys.modules['starlette'] = None; from fairhuman.cli import main; "
        f"sys.exit(main(['review', {str(folder)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert re.search(r"fairhuman review: .*; install it: pip install", done.stderr)


def test_the_command_serves_until_it_is_stopped(folder: Path) -> None:
    command = [sys.executable, "-m", "fairhuman", "review", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = re.search(
                r"3 images; open (http://127\.0\.0\.1:(\d+)/(.+)/)$",
                server.stdout.readline().rstrip(),
            )
            assert address
            assert len(address[3]) >= 32
            with urllib.request.urlopen(address[1], timeout=20) as page:
                assert b"<title>FairHuman review</title>" in page.read()
            assert main(["review", str(folder), "--port", address[2]]) == 2  # in use
        finally:
            server.send_signal(signal.SIGINT)
        assert server.wait(20) == 0
    Session(folder, View.plain(folder, 512), progress=False).close()  # the folder is free
