"""`fairhuman inspect --model` counts captions' tokens as the run that trains on them does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from fairhuman.cli import main
from fairhuman.demo.tiny import tiny_sdxl
from fairhuman.testing.tiny_flows import tiny_flux2_klein

CAPTIONS = ["short", "a hand " * 60, "word " * 10]


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """A data set with one long caption, and a model without its weights."""
    tiny_sdxl(CAPTIONS).save_pretrained(tmp_path / "model")
    for weights in (tmp_path / "model").rglob("*.safetensors"):
        weights.unlink()
    rows = []
    for number, text in enumerate(CAPTIONS):
        Image.effect_noise((64, 64), 50.0 + number).convert("RGB").save(tmp_path / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "text": text, "faces": [], "hands": []})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def inspect(people: Path, *more: str) -> int:
    page = str(people / "inspect.html")
    return main(["inspect", str(people), "--out", page, "--resolution", "64", "--strict", *more])


def test_long_captions_are_found_with_the_model_s_tokenizers(
    people: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = len("a hand " * 60) // len("a hand ") * 2  # two known words, a token each
    assert inspect(people, "--model", str(people / "model")) == 1
    said = capsys.readouterr().out
    assert f"1.png: the caption has {tokens} tokens, of which 75 are read: shorten it" in said
    assert said.count("tokens, of which") == 1
    assert inspect(people, "--model", str(people / "model"), "--allow", "long") == 0
    assert inspect(people) == 0  # without tokenizers nothing can be said


def test_each_family_counts_with_its_own_tokenizer(
    people: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """FLUX.2 reads 512 tokens with the turn of a chat, in cells of 16 pixels."""
    tiny_flux2_klein().save_pretrained(people / "flux2")
    row = {"file_name": "0.png", "text": "a" * 600, "faces": [[8, 8, 24, 24]], "hands": []}
    (people / "metadata.jsonl").write_text(json.dumps(row))
    for number in (1, 2):
        (people / f"{number}.png").unlink()
    assert inspect(people, "--model", str(people / "flux2")) == 1
    assert "of which 512 are read: shorten it" in capsys.readouterr().out
    page = (people / "inspect.html").read_text()
    assert "16 px, before boxes are widened" in page


def test_a_model_without_tokenizers_is_refused(
    people: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for model in (people, people / "nowhere", people / "0.png"):
        assert inspect(people, "--model", str(model)) == 2
        said = capsys.readouterr().err
        assert "--model" in said
        assert said.count("\n") == 1
    (people / "model/tokenizer_2/tokenizer.json").write_text("{")
    assert inspect(people, "--model", str(people / "model")) == 2
    assert "tokenizer_2 cannot be read" in capsys.readouterr().err
