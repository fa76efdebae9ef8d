"""Rectified-flow families through the trainer: caches, recomputation, resuming, LoRAs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from runs import repeatable, train, write_config
from safetensors.torch import load_file

from fairhuman.cli import main
from fairhuman.common.errors import ConfigError
from fairhuman.config import Config, load_config
from fairhuman.models.families.registry import family_class
from fairhuman.testing.tiny_flows import tiny_flux, tiny_flux2_klein, tiny_z_image

MAKERS: dict[str, Callable[[], Any]] = {
    "flux": tiny_flux,
    "z_image": tiny_z_image,
    "flux2": tiny_flux2_klein,
}
FLOW = ("objectives.snr_gamma=null", "noise.timesteps=logit_normal")


@pytest.fixture(scope="module", params=MAKERS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model") / str(request.param)
    MAKERS[request.param]().save_pretrained(out)
    return out


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("transformer/*.safetensors")
    return load_file(file)


def test_a_cache_and_recomputation_change_nothing_of_a_lora(
    model: Path, people: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path, model, people)
    prompts = "[{prompt: a boy}, {prompt: a hat, negative: rain, guidance: 2}]"
    samples = ("train.sample_every=6", "train.sample_steps=2", f"train.sample_prompts={prompts}")
    lora = (*FLOW, "model.method=lora", "model.lora.rank=2", "fairness.mode=amortized", *samples)
    train(config, tmp_path / "plain", 1, *lora)
    stored = (f"data.cache={tmp_path / 'cache'}", "data.cache_precision=fp32")
    kept = (*stored, "model.gradient_checkpointing=true")
    train(config, tmp_path / "kept", 1, *lora, *kept)
    assert repeatable(tmp_path / "kept") == repeatable(tmp_path / "plain")
    sheets = [sorted((tmp_path / run / "samples").iterdir()) for run in ("plain", "kept")]
    assert len(sheets[0]) == 2
    for one, other in zip(*sheets, strict=True):
        assert Image.open(one).tobytes() == Image.open(other).tobytes()
    files = [tmp_path / run / "final/pytorch_lora_weights.safetensors" for run in ("plain", "kept")]
    plain, again = map(load_file, files)
    assert plain.keys() == again.keys()
    assert all(torch.equal(plain[name], again[name]) for name in plain)
    assert all(name.startswith("transformer.") for name in plain)
    card = (tmp_path / "plain/final/README.md").read_text()
    index = json.loads((model / "model_index.json").read_text())
    assert f"from diffusers import {index['_class_name']}" in card

    words = ["generate", "--model", str(model), "--size", "64", "--steps", "2", "--prompt", "a boy"]
    assert main([*words, "--out", str(tmp_path / "base")]) == 0
    final = ["--lora", str(tmp_path / "plain/final")]
    assert main([*words, *final, "--out", str(tmp_path / "adapted")]) == 0
    assert main([*words, *final, "--lora-scale", "0", "--out", str(tmp_path / "none")]) == 0
    base, adapted, none = (
        Image.open(tmp_path / name / "0000.png").tobytes() for name in ("base", "adapted", "none")
    )
    assert base == none != adapted


def test_a_resumed_run_goes_on_as_if_it_had_never_stopped(people: Path, tmp_path: Path) -> None:
    tiny_flux2_klein().save_pretrained(tmp_path / "model")
    config = write_config(tmp_path, tmp_path / "model", people)
    zero = (*FLOW, "deepspeed.zero_optimization.stage=3")
    train(config, tmp_path / "straight", 2, *zero)
    train(config, tmp_path / "parts", 2, *zero, "train.steps=3")
    train(config, tmp_path / "parts", 2, *zero, "train.resume=auto")
    straight, parts = (repeatable(tmp_path / name)[-3:] for name in ("straight", "parts"))
    assert parts == straight
    first, second = (weights(tmp_path / name / "final") for name in ("straight", "parts"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    before = weights(tmp_path / "model")
    assert any(not torch.equal(first[name], before[name]) for name in first)


def test_pipelines_open_what_was_trained(people: Path, tmp_path: Path) -> None:
    import diffusers

    tiny_z_image().save_pretrained(tmp_path / "model")
    config = write_config(tmp_path, tmp_path / "model", people)
    train(config, tmp_path / "out", 1, *FLOW, "fairness.mode=sketch")
    opened = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out/final")
    assert type(opened).__name__ == "ZImagePipeline"
    trained = weights(tmp_path / "out/final")
    state = opened.transformer.state_dict()
    assert all(torch.equal(state[name], trained[name]) for name in trained)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("objectives.snr_gamma=5", "objectives.snr_gamma: is for models that predict"),
        ("train.precision=fp16", "train.precision = 'fp16': FLUX.2 klein's text encoders overflow"),
        ("data.resolution=72", "data.resolution = 72: FLUX.2 klein takes images with sides"),
    ],
)
def test_what_is_not_for_a_flow_is_refused_before_it_is_loaded(
    override: str, line: str, people: Path, tmp_path: Path
) -> None:
    tiny_flux2_klein().save_pretrained(tmp_path / "model")
    config: Config = load_config(
        write_config(tmp_path, tmp_path / "model", people), ["objectives.snr_gamma=null", override]
    )
    with pytest.raises(ConfigError, match=line):
        family_class(config.model).check_training(config)


def test_masks_meet_the_patches_by_area(people: Path, tmp_path: Path) -> None:
    """FLUX.2's grid has cells of 16 pixels: a mask there is the mean over them."""
    from fairhuman.data.dataset import People
    from fairhuman.data.index.load import load

    tiny_flux2_klein().save_pretrained(tmp_path / "model")
    config = load_config(write_config(tmp_path, tmp_path / "model", people), FLOW)
    family = family_class(config.model).load(config.model, torch.float32, torch.device("cpu"))
    records, _ = load(config)
    regions = config.objectives.regions
    fine, coarse = (
        People(records, regions, config.data, 0, cell)[0, 0].masks for cell in (1, family.cell)
    )
    expected = torch.nn.functional.avg_pool2d(fine, 16)
    torch.testing.assert_close(coarse, expected)
    pixels = People(records, regions, config.data, 0, family.cell)[0, 0].pixels
    assert pixels is not None
    posterior = family.posterior(pixels)
    latents = family.latents(posterior, torch.zeros_like(posterior.mean))
    assert latents.shape[2:] == coarse.shape[2:]
    assert latents.shape[1] == family.channels
