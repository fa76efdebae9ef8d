"""`fairhuman caption`: what it writes, whose captions it keeps, how it continues, what it refuses.

The models are tiny ones of transformers with random weights, so that they write nonsense.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from small_captioners import save_blip, save_llava

from fairhuman.cli import main
from fairhuman.common.errors import UserError
from fairhuman.curation.annotation.marks import put_text_by_human
from fairhuman.curation.captioning.caption import NAME, Captioned, caption_folder
from fairhuman.curation.captioning.captioner import PROMPT, Captioner
from fairhuman.curation.captioning.wording import Wording, one_line
from fairhuman.data.records import Reading, load_records

NAMES = ("a.png", "b ü.png", "more/c.jpg")


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llava(tmp_path_factory.mktemp("models") / "llava")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "photographs"
    (root / "more").mkdir(parents=True)
    for seed, name in enumerate(NAMES):
        noise(seed).save(root / name)
    return root


def noise(seed: int, size: tuple[int, int] = (50, 33)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3))
    return Image.fromarray(pixels.astype(np.uint8))


class Fake:
    """Describes an image by its size, and notes what it was given."""

    def __init__(self, text: str = "{width} wide", stop_after: int | None = None) -> None:
        self.text = text
        self.stop_after = stop_after
        self.seen: list[int] = []

    def describe(self, images: Sequence[Image.Image]) -> list[str]:
        if self.stop_after is not None and len(self.seen) >= self.stop_after:
            raise KeyboardInterrupt
        self.seen += [len(images)]
        return [self.text.format(width=image.width) for image in images]


def run(root: Path, describer: Fake, by: str = "model", **settings: Any) -> Captioned:
    wording = settings.pop("wording", Wording())
    return caption_folder(root, by, lambda: describer, wording, progress=False, **settings)


def rows(root: Path) -> dict[str, dict[str, Any]]:
    text = (root / "metadata.jsonl").read_text(encoding="utf-8")
    return {row["file_name"]: row for row in map(json.loads, text.splitlines())}


def texts(root: Path) -> list[str]:
    return [row["text"] for row in rows(root).values()]


def write(root: Path, *entries: dict[str, Any]) -> None:
    lines = "".join(json.dumps(entry) + "\n" for entry in entries)
    (root / "metadata.jsonl").write_text(lines, encoding="utf-8")


def test_the_command_writes_what_the_model_says_of_each_image(
    folder: Path, llava: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The oracle asks transformers about one image at a time, with the prompt written out."""
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

    words = ["caption", str(folder), "--model", str(llava), "--max-tokens", "9"]
    words += ["--batch-size", "2", "--prefix", " a photo of", "--trigger", "sks"]
    assert main(words) == 0
    assert "3 images: 3 captions written" in capsys.readouterr().out
    model = LlavaForConditionalGeneration.from_pretrained(llava)
    processor = LlavaProcessor.from_pretrained(llava)
    asked = f"<|im_start|>user\n<image>{PROMPT}<|im_end|>\n<|im_start|>assistant\n"
    found = rows(folder)
    said = []
    for name in NAMES:
        image = Image.open(folder / name).convert("RGB")
        inputs = processor(text=asked, images=image, return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=9, do_sample=False)
        answer = tokens[0, inputs["input_ids"].shape[1] :]
        said.append(one_line(processor.decode(answer, skip_special_tokens=True)))
        assert found[name]["text"] == f"sks, a photo of {said[-1]}"
        assert found[name]["caption_from"]["by"] == "llava"
    assert said[0] != said[1]  # of one batch
    assert len(load_records(folder, Reading(()))[0]) == 3
    assert not (folder / NAME).exists()


def test_a_model_without_a_chat_template_is_given_the_image_alone(tmp_path: Path) -> None:
    model = save_blip(tmp_path / "blip")
    plain, asked = Captioner(str(model), None, 8), Captioner(str(model), "A Photo", 8)
    images = [noise(0), noise(1, (5, 90))]
    assert plain.prompt == ""
    for captioner in (plain, asked):
        together = captioner.describe(images)
        assert together == [captioner.describe([image])[0] for image in images]
        assert all(map(one_line, together))
        assert not any("photo" in text for text in together)
    assert plain.describe(images) != asked.describe(images)


def test_a_humans_caption_stays_wherever_it_is(folder: Path) -> None:
    write(folder, {"file_name": "a.png", "text": "mine", "faces": [], "source": 7})
    (folder / "b ü.txt").write_text("my\nfile", encoding="utf-8")
    for overwrite in (False, True):
        describer = Fake()
        done = run(folder, describer, overwrite=overwrite)
        assert (done.written, done.by_human, describer.seen) == (1, 2, [1])
        assert texts(folder) == ["mine", "my file", "50 wide"]
        assert rows(folder)["a.png"] == {
            "file_name": "a.png",
            "text": "mine",
            "faces": [],
            "source": 7,
        }
        assert rows(folder)["b ü.png"]["caption_from"]["file"] == "b ü.txt"
        if not overwrite:
            assert run(folder, Fake()).by_model == 1
    # What a human changed of a model's caption is a human's, here and in `review`.
    changed = [*rows(folder).values()]
    changed[2]["text"] += ", in the rain"
    write(folder, *changed)
    assert run(folder, Fake(), overwrite=True).by_human == 3
    put_text_by_human(changed[2], "50 wide")
    write(folder, *changed)
    assert run(folder, Fake(), overwrite=True).by_human == 3


def test_a_caption_file_takes_the_place_of_a_models_caption(folder: Path) -> None:
    run(folder, Fake())
    (folder / "a.txt").write_text("by hand")
    describer = Fake("other")
    done = run(folder, describer)
    assert (done.written, done.by_human, done.by_model, describer.seen) == (0, 1, 2, [])
    assert texts(folder) == ["by hand", "50 wide", "50 wide"]
    (folder / "b ü.txt").write_bytes(b"\xff\xfe\xfd")
    done = run(folder, Fake("other"), overwrite=True)
    assert done.written == 1
    assert "b ü.png: its caption file may hold a human's caption" in str(done.left_out[0])
    assert texts(folder) == ["by hand", "50 wide", "other"]


def test_a_models_caption_is_written_again_when_asked_or_when_the_picture_is_another(
    folder: Path,
) -> None:
    run(folder, Fake())
    before = (folder / "metadata.jsonl").read_bytes()
    assert run(folder, Fake("other"), by="another model").by_model == 3
    assert (folder / "metadata.jsonl").read_bytes() == before
    noise(9, (60, 20)).save(folder / "a.png")
    done = run(folder, Fake())
    assert (done.written, done.by_model) == (1, 2)
    assert texts(folder) == ["60 wide", "50 wide", "50 wide"]
    assert run(folder, Fake("new"), overwrite=True).written == 3
    assert texts(folder) == ["new"] * 3


def test_a_stopped_run_continues_and_writes_nothing_before_its_end(folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(folder, Fake(stop_after=1), batch_size=1)
    assert not (folder / "metadata.jsonl").exists()
    assert (folder / NAME).exists()
    rest = Fake("later")
    done = run(folder, rest, batch_size=8)
    assert (done.written, rest.seen) == (3, [2])
    assert texts(folder) == ["50 wide", "later", "later"]
    with pytest.raises(KeyboardInterrupt):
        run(folder, Fake(stop_after=1), batch_size=1, overwrite=True)
    noise(9, (60, 20)).save(folder / "a.png")  # what was said of it is of no use
    assert run(folder, Fake("anew"), overwrite=True).written == 3
    assert texts(folder) == ["anew"] * 3
    with pytest.raises(KeyboardInterrupt):
        run(folder, Fake(stop_after=1), by="one", batch_size=1, overwrite=True)
    assert run(folder, Fake("two"), by="two", overwrite=True).written == 3
    assert texts(folder) == ["two"] * 3


def test_no_words_are_no_caption_and_bad_images_are_left_out(folder: Path) -> None:
    (folder / "d.png").write_bytes((folder / "a.png").read_bytes()[:60])
    (folder / "e.heic").write_bytes(b"?")
    done = run(folder, Fake(" \n\x00\ufffd "), wording=Wording("a photo of", ["sks"]))
    assert (done.written, done.empty) == (0, 3)
    assert texts(folder) == [""] * 3
    assert [problem.place for problem in done.left_out] == ["e.heic", "d.png"]
    assert "caption_from" not in rows(folder)["a.png"]
    assert "3 images about which the model wrote nothing" in "\n".join(done.lines())


@settings(max_examples=50, deadline=None)
@given(st.text(), st.text(alphabet="ab ,"), st.lists(st.text(alphabet="aB", min_size=1)))
def test_a_caption_is_one_line_that_holds_its_triggers(
    text: str, prefix: str, triggers: list[str]
) -> None:
    caption = Wording(one_line(prefix), triggers).caption(text)
    assert caption == one_line(caption)
    assert bool(caption) == bool(one_line(text))
    if caption:
        assert caption.endswith(one_line(text))
        assert all(words.lower() in caption.lower() for words in triggers)
        # Once: what the text has already is not put in front of it.
        assert Wording("", triggers).caption(caption) == caption


def test_a_model_that_cannot_describe_images_is_named(tmp_path: Path, llava: Path) -> None:
    def refused(model: Path | str) -> str:
        with pytest.raises(UserError) as caught:
            Captioner(str(model))
        assert "\n" not in str(caught.value)
        assert "--model" in str(caught.value)
        return str(caught.value)

    (tmp_path / "empty").mkdir()
    assert "must be a folder with a config.json" in refused(tmp_path / "empty")
    assert "there is no such folder" in refused("./nothing")
    text = tmp_path / "text"
    text.mkdir()
    (text / "config.json").write_text('{"model_type": "qwen2"}')
    assert "cannot be loaded" in refused(text) or "has no processor" in refused(text)
    cut = tmp_path / "cut"
    cut.mkdir()
    for file in llava.iterdir():
        (cut / file.name).write_bytes(file.read_bytes())
    tensors = load_file(cut / "model.safetensors")
    left = {name: value for name, value in tensors.items() if "layers.0.mlp" not in name}
    assert len(left) < len(tensors)
    save_file(left, cut / "model.safetensors", {"format": "pt"})
    assert "its weights lack" in refused(cut)
    (cut / "model.safetensors").write_bytes(b"no")
    assert "cannot be loaded" in refused(cut)
    (cut / "model.safetensors").unlink()
    torch.save(tensors, cut / "pytorch_model.bin")  # a pickle, which could run code
    assert "cannot be loaded" in refused(cut)


def test_what_is_wrong_with_the_command_is_said_before_the_model_is_loaded(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["caption", str(folder), "--model", "./nothing"]
    for more, expected in (
        (["--batch-size", "0"], "--batch-size 0: must be at least 1"),
        (["--max-tokens", "0"], "--max-tokens 0: must be at least 1"),
        ([], "there is no such folder"),
    ):
        assert main([*words, *more]) == 2
        assert expected in capsys.readouterr().err
    assert not (folder / "metadata.jsonl").exists()
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "0.parquet").write_bytes(b"PAR1")
    assert main(["caption", str(tmp_path / "shards"), "--model", "x"]) == 2
    assert "holds no image" in capsys.readouterr().err
    write(folder, {"text": "no name"})
    assert main(words) == 2
    assert "metadata.jsonl:1" in capsys.readouterr().err
