"""What every family is held to, of a tiny model of its structure: assertions, for any test runner.

from fairhuman.testing import check_family

def test_my_family(tmp_path):
    my_tiny_pipeline().save_pretrained(tmp_path / "model")
    check_family(tmp_path / "model", predicted, tmp_path)
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from fairhuman.config import Config, Model
from fairhuman.demo.drawn import draw_people
from fairhuman.models.drawing import Picture
from fairhuman.models.empty import empty_model
from fairhuman.models.families.protocol import Family
from fairhuman.models.families.registry import check_model
from fairhuman.planning.memory_plan import Sizes, plan_memory

CPU = torch.device("cpu")
CAPTIONS = ["a woman with a red hat", "two men at a table"]
_SIZE = (64, 96)
"""Width and height of the pictures."""
_CLOCKS = ("samples_per_s", "step_time_s", "memory_gib", "time/")

Predict = Callable[[Any, Tensor, Tensor, list[str]], Tensor]
"""A pipeline's prediction, from it, noisy latents [B, C, H, W], the share of noise [B] and the
captions: written from the pipeline's own sampling loop, not from the family."""
Encode = Callable[[Any, Tensor], Tensor]
"""A pipeline's latents [B, C, H, W] of pixels [B, 3, H, W] in [-1, 1]: of the posterior's mean."""


def scaled_mean(pipeline: Any, pixels: Tensor) -> Tensor:
    """Return the mean of the VAE's posterior, shifted and scaled: what most families train on."""
    config, mean = pipeline.vae.config, pipeline.vae.encode(pixels).latent_dist.mode()
    latents: Tensor = (mean - (config.shift_factor or 0.0)) * config.scaling_factor
    return latents


def check_family(folder: Path, predict: Predict, out: Path, encode: Encode = scaled_mean) -> None:
    """Run all checks on a tiny model of a family: minutes on a CPU.

    Args:
        folder: the model, in diffusers' layout; of a family that is found by its pipeline.
        predict: the reference for the loss.
        out: an empty folder to work in.
        encode: the reference for the latents.

    Raises:
        AssertionError: something is not as it should be.
    """
    check_loss(folder, predict, encode)
    check_captions(folder)
    check_pictures(folder, out)
    check_plan(folder)
    check_training(folder, out)


def load(folder: Path) -> Family:
    """Load a model as training does, in float32."""
    settings = Model(pretrained=str(folder))
    return check_model(settings).load(settings, torch.float32, CPU)


@torch.no_grad()
def check_loss(folder: Path, predict: Predict, encode: Encode = scaled_mean) -> None:
    """Check latents, noise, prediction and loss against the references, to 1e-6."""
    import diffusers

    family = load(folder)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, use_safetensors=True)
    pixels = _normal((2, 3, *reversed(_SIZE)), 0).clamp(-1, 1)
    latents = encode(pipeline, pixels)
    posterior = family.posterior(pixels)
    drawn = family.latents(posterior._replace(std=torch.zeros_like(posterior.std)), latents)
    torch.testing.assert_close(drawn, latents, rtol=1e-5, atol=1e-5)  # one image at a time
    assert latents.shape[1] == family.channels
    assert [side * family.cell for side in latents.shape[2:]] == list(pixels.shape[2:])

    noise, steps = _normal(latents.shape, 1), torch.tensor([37, 941])
    noisy = family.noising.add_noise(latents, noise, steps)
    # Of a flow, noisy = (1 - s) latents + s noise.
    ways = (noise - latents).double()
    sigmas = ((noisy.double() - latents) * ways).sum((1, 2, 3)) / ways.square().sum((1, 2, 3))
    expected = predict(pipeline, noisy, sigmas.float(), list(CAPTIONS))
    prompt, time_ids = family.encode_captions(CAPTIONS), torch.zeros(2, 6)
    ours = family.predict(family.denoiser, noisy, steps, prompt, time_ids)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=5e-5)  # of float32, by batch
    target = family.noising.target(latents, noise, steps)
    torch.testing.assert_close(target, noise - latents)
    losses = [(part.double() - target.double()).square().mean() for part in (ours, expected)]
    assert abs(losses[0] - losses[1]) < 1e-6 * losses[1], f"losses {losses}"


@torch.no_grad()
def check_captions(folder: Path) -> None:
    """Check that a caption is encoded as if it were alone, and that its length is known."""
    family = load(folder)
    together = family.encode_captions([*CAPTIONS, None])
    assert isinstance(together, family.prompt_type)
    for index, text in enumerate([*CAPTIONS, None]):
        alone = family.encode_captions([text])
        for part, whole in zip(alone, together, strict=True):
            assert torch.equal(part[0], whole[index]), f"caption {text!r} depends on others"
        assert family.prompt_bytes() == sum(part.numel() * part.element_size() for part in alone)
    counts = family.token_counts([*CAPTIONS, "a " * 700])
    assert family.fit_captions(counts[:-1]) == []
    (line,) = family.fit_captions(counts)
    assert line.startswith("1 of 3 captions")
    assert all(family.tokenizer_texts())


@torch.no_grad()
def check_pictures(folder: Path, out: Path) -> None:
    """Check that pictures depend on their own seeds, and what is written draws the same."""
    family = load(folder)
    asked = [Picture(text, 3 + i, _SIZE, steps=2) for i, text in enumerate(CAPTIONS)]
    before = list(family.drawn(family.pipeline, asked))
    (alone,) = family.drawn(family.pipeline, asked[1:])
    assert alone.size == _SIZE
    assert farthest(alone, before[1]) <= 1
    family.write(out / "written")
    again = load(out / "written")
    after = list(again.drawn(again.pipeline, asked))
    assert [one.tobytes() for one in before] == [one.tobytes() for one in after]
    if again.draws_without_text:
        _check_kept(again, asked, before)


def _check_kept(family: Family, asked: list[Picture], expected: list[Image.Image]) -> None:
    """Check that pictures of texts that are kept are drawn with no encoder but the VAE."""
    family.keep_prompts([*CAPTIONS, asked[0].negative], CPU)
    for encoder in family.frozen_text.models:
        encoder.register_forward_pre_hook(_refuse)
    kept = list(family.drawn(family.pipeline, asked))
    assert [one.tobytes() for one in kept] == [one.tobytes() for one in expected]


def check_plan(folder: Path) -> None:
    """Check that sizes are known from the configs alone, and a step from fake tensors."""
    family = load(folder)
    empty, _, _ = empty_model(Model(pretrained=str(folder)), torch.float32)
    for real, fake in ((family.denoiser, empty.denoiser), (family.vae, empty.vae)):
        assert _shapes(real) == _shapes(fake)
    for settings in ({}, {"method": "lora"}):
        config = _config(folder, settings)
        sizes = Sizes.of(config)
        memory = plan_memory(config, sizes, 2)
        assert sizes.trained > 0
        assert sizes.activations.step > 0
        assert memory.total(memory.peak) > 0


def check_training(folder: Path, out: Path) -> None:
    """Check runs: every mode and ZeRO stage, a cache, recomputation, a LoRA, a resumed run."""
    people = out / "people"
    if not people.exists():
        draw_people(people, count=24, size=64, seed=1)

    def run(name: str, ranks: int, *overrides: str) -> Path:
        return _train(folder, people, out / name, ranks, overrides)

    stage = "deepspeed.zero_optimization.stage"
    straight = run("straight", 2, f"{stage}=3", "fairness.mode=exact")
    parts = ("parts", 2, f"{stage}=3", "fairness.mode=exact")
    run(*parts, "train.steps=2")
    resumed = run(*parts, "train.resume=auto")
    assert _metrics(resumed)[-2:] == _metrics(straight)[-2:], "a resumed run differs"
    assert _same(straight / "final", resumed / "final")
    run("sketch", 1, f"{stage}=1", "fairness.mode=sketch")

    lora = ("model.method=lora", "model.lora.rank=2", "fairness.mode=amortized", f"{stage}=2")
    plain = run("lora", 1, *lora)
    cache = (f"data.cache={out / 'cache'}", "data.cache_precision=fp32")
    kept = run("kept", 1, *lora, *cache, "model.gradient_checkpointing=true")
    assert _metrics(kept) == _metrics(plain), "a cache or recomputation changes results"
    assert _same(plain / "final", kept / "final")
    family = load(folder)
    picture = Picture(CAPTIONS[0], 0, _SIZE, steps=2)
    (base,) = family.drawn(family.pipeline, [picture])
    family.pipeline.load_lora_weights(plain / "final", use_safetensors=True)
    (adapted,) = family.drawn(family.pipeline, [picture])
    assert base.tobytes() != adapted.tobytes(), "the LoRA changes nothing"


def farthest(one: Image.Image, other: Image.Image) -> int:
    """Return the largest difference of two pictures, of 255."""
    return int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max())


def _refuse(module: nn.Module, given: object) -> None:
    raise AssertionError(f"{type(module).__name__} was called")


def _normal(shape: Sequence[int], seed: int) -> Tensor:
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(part.shape) for name, part in model.state_dict().items()}


def _config(folder: Path, model: dict[str, Any]) -> Config:
    return Config.model_validate(
        {
            "model": {"pretrained": str(folder), **model},
            "data": {"root": "none", "resolution": 64},
            "train": {"output_dir": "none", "steps": 10},
            "deepspeed": {"zero_optimization": {"stage": 2}},
        }
    )


def _train(folder: Path, people: Path, out: Path, ranks: int, overrides: Sequence[str]) -> Path:
    """Train for 4 steps by the command; return the run's folder."""
    settings = {
        "model": {"pretrained": str(folder)},
        "data": {"root": str(people), "resolution": 64, "workers": 0, "validation": 4},
        "optimizer": {"name": "AdamW8bit", "lr": 1e-3},
        "train": {
            "output_dir": str(out),
            "steps": 4,
            "batch_size": 2,
            "precision": "fp32",
            "checkpoint_every": 2,
            "validate_every": 2,
            "resume": "none",
        },
        "deepspeed": {"zero_optimization": {"stage": 2}},
    }
    config = out.with_suffix(".json")  # YAML too
    config.write_text(json.dumps(settings))
    words = ["train", "--ranks", str(ranks), "--config", str(config), *overrides]
    done = subprocess.run(
        [sys.executable, "-m", "fairhuman", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{' '.join(words)}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    return out


def _metrics(run: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if not k.startswith(_CLOCKS)} for line in lines]


def _same(one: Path, other: Path) -> bool:
    """Return whether two folders have the same tensors in their files of weights."""
    files = sorted(path.relative_to(one) for path in one.rglob("*.safetensors"))
    assert files, f"{one} holds no weights"
    for file in files:
        first, second = load_file(one / file), load_file(other / file)
        if first.keys() != second.keys():
            return False
        if not all(torch.equal(first[name], second[name]) for name in first):
            return False
    return True
