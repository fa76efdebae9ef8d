"""Prompts with settings of their own: each picture is the one that it would be alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fairhuman.cli import main
from fairhuman.common.images import open_image
from fairhuman.config import Config, Lora, Model
from fairhuman.data.records import Record
from fairhuman.demo.tiny import tiny_sdxl
from fairhuman.models.drawing import Picture, grid
from fairhuman.models.families.sdxl.drawing import drawn
from fairhuman.models.families.sdxl.model import SDXL
from fairhuman.models.lora import LoRA
from fairhuman.training.sample_pictures import sample_pictures


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_sdxl(["a boy", "a girl"]).save_pretrained(folder)
    return folder


def load(tiny: Path) -> SDXL:
    return SDXL.load(Model(pretrained=str(tiny)), torch.float32, torch.device("cpu"))


def trained(tiny: Path) -> tuple[SDXL, LoRA]:
    sdxl = load(tiny)
    lora = LoRA(sdxl, Lora(rank=2), 0, False)
    with torch.no_grad():
        for name, parameter in lora.module.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(1))
    return sdxl, lora


def apart(one: Image.Image, other: Image.Image) -> float:
    """The mean difference of two pictures' values."""
    return float(np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).mean())


def test_a_picture_does_not_depend_on_those_that_are_drawn_with_it(tiny: Path) -> None:
    _, lora = trained(tiny)
    asked = [
        Picture("a boy", 3, (64, 64), steps=2),
        Picture("a girl", 4, (64, 64), steps=2, negative="a boy"),
        Picture("a girl", 4, (48, 72), steps=2),
        Picture("a girl", 4, (64, 64), steps=3, guidance=1.0),
        Picture("a girl", 4, (64, 64), steps=2, lora_scale=0.0),
        Picture("a girl", 4, (64, 64), steps=2),
    ]
    together = list(drawn(lora.pipeline, asked))
    assert [picture.size for picture in together] == [picture.size for picture in asked]
    alone = [next(drawn(lora.pipeline, [picture])) for picture in asked]
    (base,) = drawn(load(tiny).pipeline, [asked[5]])
    alone[4] = base  # without its LoRA
    for place, one in enumerate(together):
        others = [apart(one, o) for o in together if o is not one and o.size == one.size]
        # Larger products round otherwise; other settings change far more.
        assert apart(one, alone[place]) < min([1.0, *(other / 5 for other in others)])


def test_a_sheet_has_room_for_pictures_of_any_size() -> None:
    sheet = grid([Image.new("RGB", size) for size in [(8, 16), (24, 8)]], columns=2, gap=0)
    assert sheet.size == (48, 16)


def test_generate_draws_what_a_file_asks_for(tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    lines: list[Any] = ["a boy", {"prompt": "a girl", "seed": 9, "size": "48x64", "steps": 3}]
    file.write_text("\n".join(map(json.dumps, lines)))
    words = ["generate", "--model", str(tiny), "--steps", "2", "--size", "64", "--seed", "5"]
    assert main([*words, "--prompts", str(file), "--count", "2", "--out", str(tmp_path / "a")]) == 0
    alone = ["generate", "--model", str(tiny), "--prompt", "a boy", "--steps", "2", "--size", "64"]
    assert main([*alone, "--seed", "6", "--out", str(tmp_path / "b")]) == 0
    found = [Image.open(tmp_path / "a" / f"{index:04d}.png") for index in range(4)]
    told = [{key: str(picture.info[key]) for key in ("seed", "steps")} for picture in found]
    assert told == [
        {"seed": "5", "steps": "2"},
        {"seed": "6", "steps": "2"},
        {"seed": "9", "steps": "3"},
        {"seed": "10", "steps": "3"},
    ]
    assert [picture.size for picture in found] == [(64, 64)] * 2 + [(48, 64)] * 2
    second = open_image(tmp_path / "a" / "0001.png")
    assert apart(second, open_image(tmp_path / "b" / "0000.png")) < 1


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ({"lora_scale": 0.5}, "p.jsonl:1: lora_scale = 0.5: no --lora is given"),
        ({"control": "x.png"}, "p.jsonl:1: control = 'x.png': is for --controlnet or --adapter"),
        ({"size": 12}, "p.jsonl:1: size = 12: its sides must be multiples of 8"),
    ],
)
def test_generate_refuses_what_does_not_go_together_before_it_loads_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: dict[str, Any], told: str
) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps({"prompt": "a", **line}))
    words = ["--model", "/nowhere", "--prompts", str(file), "--out", str(tmp_path / "out")]
    assert main(["generate", *words]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert told in said


def config(**train: Any) -> Config:
    return Config.model_validate(
        {
            "model": {"pretrained": "m", "method": "lora"},
            "data": {"root": "d", "resolution": 64},
            "train": {"output_dir": "o", "steps": 1, "seed": 3, **train},
            "deepspeed": {"zero_optimization": {"stage": 2}},
        }
    )


def test_a_run_s_samples_take_what_they_lack_from_the_config() -> None:
    records = [Record(str(i), Path(f"{i}.png"), f"caption {i}", {}, (64, 64)) for i in range(9)]
    found = sample_pictures(records, config())
    assert [(p.prompt, p.seed, p.size, p.steps) for p in found] == [
        (f"caption {i}", 3 + n, (64, 64), 30) for n, i in enumerate((0, 2, 5, 8))
    ]
    defaults = {
        "sample_negative": "blur", "sample_size": (64, 128), "sample_seed": 20,
        "sample_steps": 4, "sample_guidance": 2.0, "sample_lora_scale": 0.5,
    }  # fmt: skip
    own = {
        "prompt": "b", "negative": "", "size": 96, "seed": 1, "steps": 2, "guidance": 0.0,
        "lora_scale": 1.0,
    }  # fmt: skip
    found = sample_pictures(records, config(**defaults, sample_prompts=["a", own]))
    assert found == [
        Picture("a", 20, (64, 128), "blur", 4, 2.0, None, 0.5),
        Picture("b", 1, (96, 96), "", 2, 0.0, None, 1.0),
    ]
