"""The examples run, and several ranks come to what one process comes to."""

from __future__ import annotations

import re
from pathlib import Path

import launch
import pytest
from snippets import ROOT, commands

from fairhuman.cli import main

EXAMPLES = ROOT / "examples"
STEPS = "60"


def losses(printed: str) -> list[float]:
    """All losses that an example printed, in their order."""
    found = [float(number) for number in re.findall(r"[a-z] (\d+\.\d+)", printed)]
    assert found, printed
    return found


@pytest.fixture(scope="module")
def alone() -> list[float]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        done = launch.run([STEPS], script=EXAMPLES / "own_loop.py", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.printed
    return losses(done.stdout)


def test_every_loss_falls(alone: list[float]) -> None:
    first, last = alone[:3], alone[-3:]
    assert all(end < 0.5 * start for start, end in zip(first, last, strict=True))


@pytest.mark.parametrize("name", ["ddp.py", "fsdp2.py"])
def test_two_ranks_train_as_one_process_does(
    alone: list[float], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    done = launch.run([STEPS], ranks=2, script=EXAMPLES / name, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.printed
    assert losses(done.stdout) == pytest.approx(alone, rel=0.02, abs=2e-4)


def test_the_lora_page_goes_from_photographs_to_an_exported_file(
    people: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its commands as they are written, on drawn people and a tiny SDXL; without `annotate`."""
    small = [
        f"model.pretrained={tiny_model}",
        "model.vae=null",
        "model.lora.rank=2",
        "data.resolution=64",
        "data.bucket_step=32",
        "data.mask_margin=2",
        "data.workers=0",
        f"data.cache={tmp_path / 'cache'}",
        "optimizer.warmup_steps=1",
        f"train.output_dir={tmp_path / 'out'}",
        "train.steps=2",
        "train.gradient_accumulation=1",
        "train.precision=fp32",
        "train.validate_every=2",
        "train.sample_every=0",
    ]
    places = {
        "photographs": str(people),
        "data.root=photographs": f"data.root={people}",
        "stabilityai/stable-diffusion-xl-base-1.0": str(tiny_model),
        "photographs/inspect.html": str(tmp_path / "inspect.html"),
        "outputs/photographs-lora/final": str(tmp_path / "out" / "final"),
        "pictures": str(tmp_path / "pictures"),
        "photographs.safetensors": str(tmp_path / "people.safetensors"),
    }
    monkeypatch.chdir(ROOT)
    ran = []
    for words in commands(EXAMPLES / "lora" / "README.md"):
        own = [places.get(word, word) for word in words]
        if own[0] == "deepspeed":
            done = launch.run([*own[own.index("fairhuman/train.py") + 1 :], *small])
            assert done.returncode == 0, done.printed
        elif own[0] == "fairhuman" and own[1] != "annotate":
            extra = {
                "doctor": small,
                "generate": ["--steps", "2", "--size", "64"],
                "export": ["--config", str(tiny_model)],
            }
            assert main([*own[1:], *extra.get(own[1], [])]) == 0, own
        ran.append(own[1] if own[0] == "fairhuman" else own[0])
    assert ran == ["pip", "annotate", "inspect", "doctor", "deepspeed", "generate", "export"]
    assert (tmp_path / "inspect.html").is_file()
    assert (tmp_path / "pictures" / "0000.png").is_file()
    assert (tmp_path / "people.safetensors").is_file()
