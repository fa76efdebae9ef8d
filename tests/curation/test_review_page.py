"""The page of `fairhuman review` in a browser: a real mouse, a real keyboard."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette", reason="starlette is not installed: the extra review")
pytest.importorskip("uvicorn", reason="uvicorn is not installed: the extra review")
pytest.importorskip("playwright", reason="playwright is not installed")

import uvicorn
from playwright import sync_api

from fairhuman.curation.inspection.inspect import View
from fairhuman.curation.review.server import listening, make_app
from fairhuman.curation.review.session import Session

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SIZE = (400, 300)
SLOW_MS = 60_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no browser is installed: none of {', '.join(BROWSERS)}")
    with sync_api.sync_playwright() as playwright:
        # Chromium's own sandbox cannot be made by root, nor in most containers.
        found = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images: the first has a face, the second a hand mask, the third is not annotated."""
    root = tmp_path / "pictures"
    (root / "masks").mkdir(parents=True)
    for i in range(3):
        values = np.random.default_rng(i).integers(0, 255, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(values).resize(SIZE).save(root / f"{i}.png")
    mask = Image.new("L", SIZE)
    mask.paste(255, (100, 100, 200, 200))
    mask.save(root / "masks" / "1.png")
    lines: list[dict[str, Any]] = [
        {"file_name": "0.png", "text": "zero", "faces": [[100, 100, 80, 60]], "hands": []},
        {"file_name": "1.png", "text": "one", "faces": [], "hand_mask": "masks/1.png"},
        {"file_name": "2.png", "text": "two"},
    ]
    (root / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


class Reviewed:
    """A served folder, open in a page."""

    def __init__(self, page: Any, root: Path, address: str) -> None:
        self.page, self.root, self.address = page, root, address
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.set_default_timeout(SLOW_MS)
        page.goto(address)
        self.at("2.png")  # the worst: nobody looked at it
        page.select_option("#order", "name")

    def at(self, name: str) -> None:
        """Wait until an image is shown whole."""
        self.page.wait_for_selector(f'#name:text-is("{name}")')
        self.page.wait_for_selector('#trained[src^="blob:"], #trained[hidden]', state="attached")

    def row(self, number: int) -> dict[str, Any]:
        lines = (self.root / "metadata.jsonl").read_text().splitlines()
        found: dict[str, Any] = json.loads(lines[number])
        return found

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait for what the page saves by itself."""
        for _ in range(SLOW_MS // 50):
            if holds():
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"{self.page.inner_text('#saved')}; {self.errors}")

    def open(self, number: int) -> None:
        self.page.click(f'#strip button[aria-label^="{number}.png"]')
        self.at(f"{number}.png")

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def point(self, x: float, y: float) -> tuple[float, float]:
        """Return where a pixel of the fitted image is on the screen."""
        box = self.page.locator("#stage").bounding_box()
        # There is a margin of 12 px, and one of 48 px for the hint below.
        scale = min((box["width"] - 24) / SIZE[0], (box["height"] - 60) / SIZE[1])
        left = box["x"] + (box["width"] - SIZE[0] * scale) / 2
        top = box["y"] + 12 + (box["height"] - 60 - SIZE[1] * scale) / 2
        return left + x * scale, top + y * scale

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        mouse = self.page.mouse
        mouse.move(*self.point(*start))
        mouse.down()
        mouse.move(*self.point((start[0] + end[0]) / 2, (start[1] + end[1]) / 2))
        mouse.move(*self.point(*end))
        mouse.up()


@pytest.fixture
def reviewed(browser: Any, folder: Path) -> Iterator[Reviewed]:
    # In this process: the command is tested in test_review, and its start takes seconds.
    session = Session(folder, View.plain(folder, 256), progress=False)
    server = uvicorn.Server(uvicorn.Config(make_app(session, "token"), log_level="warning"))
    with listening(0) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        try:
            port = listener.getsockname()[1]
            opened = Reviewed(page, folder, f"http://127.0.0.1:{port}/token/")
            yield opened
            assert not opened.errors
        finally:
            page.close()
            server.should_exit = True
            thread.join()
            session.close()


def close(found: Any, expected: list[float]) -> bool:
    """Whether a box is where it was drawn, to what a pixel of the screen is."""
    return bool(np.allclose(found, expected, atol=1.5))


def test_boxes_by_mouse(reviewed: Reviewed) -> None:
    reviewed.open(0)
    reviewed.press("2", "b")
    reviewed.drag((220, 40), (300, 120))
    reviewed.until(lambda: len(reviewed.row(0)["hands"]) == 1)
    assert close(reviewed.row(0)["hands"][0], [220, 40, 80, 80])
    assert reviewed.row(0)["detected"]["hand"]["by"] == "human"

    reviewed.press("v")
    reviewed.drag((140, 130), (190, 180))  # nothing is selected: this press selects the face
    reviewed.drag((140, 130), (190, 180))  # and this drag moves it, wherever it is by now
    reviewed.until(lambda: reviewed.row(0)["faces"][0][:2] != [100, 100])
    x, y, width, height = reviewed.row(0)["faces"][0]
    assert (width, height) == (80, 60)

    reviewed.drag((x + width, y + height), (x + width + 30, y + height + 20))
    reviewed.until(lambda: reviewed.row(0)["faces"][0][2] != 80)
    assert close(reviewed.row(0)["faces"][0], [x, y, width + 30, height + 20])

    reviewed.press("Delete")
    reviewed.until(lambda: reviewed.row(0)["faces"] == [])
    reviewed.press("Control+z", "Control+z", "Control+z")  # deleted, resized, moved
    reviewed.until(lambda: reviewed.row(0)["faces"] == [[100, 100, 80, 60]])
    reviewed.press("Control+z")
    reviewed.until(lambda: reviewed.row(0)["hands"] == [])
    reviewed.press("Control+y")
    reviewed.until(lambda: len(reviewed.row(0)["hands"]) == 1)


def test_everything_by_keyboard(reviewed: Reviewed) -> None:
    reviewed.open(0)
    reviewed.press("x", "Shift+ArrowRight", "ArrowDown", "Alt+Shift+ArrowRight")
    reviewed.until(lambda: reviewed.row(0)["faces"] == [[110, 101, 90, 60]])
    reviewed.press("Escape", "2", "a")
    reviewed.until(lambda: len(reviewed.row(0)["hands"]) == 1)
    assert close(reviewed.row(0)["hands"][0], [175, 125, 50, 50])
    reviewed.press("n")
    reviewed.until(lambda: reviewed.row(0)["hands"] == [])
    reviewed.press("c", "End")
    reviewed.page.keyboard.type(" n, e and 1")  # what is typed is no command
    reviewed.press("Escape")
    reviewed.until(lambda: reviewed.row(0)["text"] == "zero n, e and 1")
    reviewed.press("Enter")
    reviewed.at("1.png")
    reviewed.press("2", "p", "Shift+ArrowRight", "Space")  # a dab next to the middle
    reviewed.until(lambda: reviewed.row(1)["hand_mask"] != "masks/1.png")
    mask = np.asarray(Image.open(reviewed.root / reviewed.row(1)["hand_mask"]))
    assert mask[150, 210] == 255  # to the right of the mask that was there
    assert mask[110, 110] == 255
    reviewed.press("v", "PageDown")
    reviewed.at("2.png")
    reviewed.press("1", "n")
    reviewed.until(lambda: reviewed.row(2).get("faces") == [])
    assert "hands" not in reviewed.row(2)
    reviewed.press("PageUp", "ArrowLeft")
    reviewed.at("0.png")
    assert reviewed.page.is_checked("#done")
    assert "1 of 3 done" in reviewed.page.inner_text("#count")


def test_masks_by_mouse(reviewed: Reviewed) -> None:
    reviewed.open(1)
    reviewed.press("2", "e")
    reviewed.drag((90, 150), (210, 150))
    reviewed.until(lambda: reviewed.row(1)["hand_mask"] != "masks/1.png")
    erased = reviewed.row(1)["hand_mask"]
    mask = np.asarray(Image.open(reviewed.root / erased))
    assert mask.shape == SIZE[::-1]
    assert mask[150, 110:190].max() == 0
    assert mask[105:125, 105:195].min() == 255
    reviewed.press("p")
    reviewed.drag((300, 50), (300, 51))
    reviewed.until(lambda: reviewed.row(1)["hand_mask"] != erased)
    painted = np.asarray(Image.open(reviewed.root / reviewed.row(1)["hand_mask"]))
    assert painted[50, 300] == 255
    assert painted[150, 150] == 0
    reviewed.press("Control+z")
    reviewed.until(lambda: reviewed.row(1)["hand_mask"] == erased)
    reviewed.press("Control+z")
    reviewed.until(lambda: reviewed.row(1)["hand_mask"] == "masks/1.png")
    reviewed.press("Shift+Delete")
    reviewed.until(lambda: "hand_mask" not in reviewed.row(1))


def test_a_mask_begins_as_the_boxes(reviewed: Reviewed) -> None:
    reviewed.open(0)
    reviewed.press("1", "p")
    reviewed.drag((300, 250), (310, 250))
    reviewed.until(lambda: "face_mask" in reviewed.row(0))
    mask = np.asarray(Image.open(reviewed.root / reviewed.row(0)["face_mask"]))
    assert mask[100:160, 100:180].min() == 255
    assert mask[250, 305] == 255
    assert mask[50, 50] == 0


def test_a_conflict_asks(reviewed: Reviewed) -> None:
    def write_theirs(text: str) -> None:
        lines = (reviewed.root / "metadata.jsonl").read_text().splitlines()
        row = json.loads(lines[0]) | {"text": text}
        (reviewed.root / "metadata.jsonl").write_text("\n".join([json.dumps(row), *lines[1:]]))

    reviewed.open(0)
    page = reviewed.page
    write_theirs("theirs")
    reviewed.press("2", "a")
    page.wait_for_selector("#conflict[open]")
    assert reviewed.row(0)["hands"] == []
    page.click("#reload")
    assert page.input_value("#caption") == "theirs"
    write_theirs("theirs again")
    reviewed.press("a")
    page.wait_for_selector("#conflict[open]")
    page.click("#overwrite")
    reviewed.until(lambda: len(reviewed.row(0)["hands"]) == 1)
    assert reviewed.row(0)["text"] == "theirs"


def test_the_filter_and_the_second_visit(reviewed: Reviewed) -> None:
    page = reviewed.page
    reviewed.open(1)
    page.select_option("#kind", "unannotated")
    reviewed.at("2.png")
    assert page.inner_text("#count").startswith("1 of 1")
    page.reload()
    reviewed.at("2.png")  # where the last visit ended


def test_every_control_has_a_name_and_shows_its_focus(reviewed: Reviewed) -> None:
    page = reviewed.page
    for control in page.locator("button, input, select, textarea, [tabindex]").all():
        if not control.is_visible() or not control.is_enabled():
            continue
        name = control.evaluate(
            "e => e.ariaLabel || e.innerText || [...(e.labels || [])].map(l => l.innerText).join()"
        )
        assert name.strip(), control.evaluate("e => e.outerHTML")
    for _ in range(12):
        reviewed.press("Tab")
        outline = page.locator(":focus").evaluate("e => getComputedStyle(e).outlineStyle")
        assert outline != "none"
    reviewed.press("Escape", "?")
    assert page.is_visible("#keys")
    reviewed.press("Escape")
    assert not page.is_visible("#keys")
