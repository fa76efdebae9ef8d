"""Timesteps and noise: their distributions, their streams, and zero terminal SNR."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from fairhuman.common.errors import ConfigError
from fairhuman.config import Config, Model, Noise
from fairhuman.data.dataset import Batch
from fairhuman.data.order import generator
from fairhuman.models.families.sdxl.model import SDXL
from fairhuman.models.noising.ddpm import snr_weight, target
from fairhuman.training.denoising import Denoising
from fairhuman.training.noise import Timesteps, quarter_steps

COUNT = 1000


def expected(noise: Noise) -> np.ndarray:
    """The probabilities by other means: scipy's normal, and what the words of the options say."""
    t = np.arange(COUNT)
    if noise.timesteps == "logit_normal":
        with np.errstate(divide="ignore"):
            edges = np.log(np.arange(COUNT + 1) / (COUNT - np.arange(COUNT + 1)))
        mass = np.diff(stats.norm(noise.logit_mean, noise.logit_std).cdf(edges))
    else:
        first, end = noise.bias_range or (0, COUNT)
        chosen = {
            "uniform": t < 0,
            "earlier": t < COUNT * noise.bias_portion,
            "later": t >= COUNT * (1 - noise.bias_portion),
            "range": (first <= t) & (t < end),
        }[noise.timesteps]
        mass = np.where(chosen, noise.bias, 1.0)
    mass = mass * ((noise.min_timestep <= t) & (t < (noise.max_timestep or COUNT)))
    return np.asarray(mass / mass.sum())


WAYS = [
    {"min_timestep": 200, "max_timestep": 300},
    {"timesteps": "logit_normal"},
    {"timesteps": "logit_normal", "logit_mean": 1.2, "logit_std": 0.5, "max_timestep": 900},
    {"timesteps": "earlier", "bias": 3.0},
    {"timesteps": "later", "bias": 0.5, "bias_portion": 0.5, "min_timestep": 100},
    {"timesteps": "range", "bias_range": (250, 500), "bias": 4.0},
]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_timesteps_are_drawn_as_often_as_they_should_be(way: dict[str, Any]) -> None:
    noise = Noise(**way)
    steps = Timesteps(noise, COUNT)
    reference = expected(noise)
    np.testing.assert_allclose(steps.probabilities, reference, rtol=1e-9, atol=1e-15)
    rng = generator(0, 0, "", "test")
    drawn = np.array([steps.draw(rng.random()) for _ in range(20_000)])
    seen = np.bincount(drawn // 50, minlength=20)
    mass = reference.reshape(20, 50).sum(axis=1)
    assert not seen[mass == 0].any()
    here = mass * len(drawn) > 5
    scaled = mass[here] / mass[here].sum() * seen[here].sum()
    assert stats.chisquare(seen[here], scaled).pvalue > 1e-3
    assert steps.draw(np.nextafter(1.0, 0.0)) == np.flatnonzero(reference)[-1]
    assert steps.draw(0.0) == np.flatnonzero(reference)[0]


@pytest.mark.parametrize(
    ("way", "line"),
    [
        ({"max_timestep": 1001}, "noise.max_timestep = 1001: the model has 1000 timesteps"),
        ({"min_timestep": 1000}, "noise.min_timestep = 1000: must be less than 1000"),
        ({"timesteps": "range", "bias_range": (5, 1001)}, r"noise.bias_range = \[5, 1001\]: the"),
        (
            {"timesteps": "logit_normal", "logit_std": 0.01, "min_timestep": 900},
            "'logit_normal': never draws a timestep from 900 to 999",
        ),
    ],
)
def test_what_the_model_cannot_draw_is_told(way: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        Timesteps(Noise(**way), COUNT)


def test_quarters_hold_a_timestep_of_each_and_cover_all() -> None:
    steps = torch.arange(COUNT)
    for quarter in range(4):
        moved = quarter_steps(steps, COUNT, quarter)
        assert moved.unique().tolist() == list(range(250 * quarter, 250 * (quarter + 1)))


@pytest.fixture
def velocity(tiny_model: Path) -> SDXL:
    settings = Model(pretrained=str(tiny_model), prediction_type="v_prediction")
    return SDXL.load(settings, torch.float32, torch.device("cpu"))


def denoising(sdxl: SDXL, noise: dict[str, Any]) -> Denoising:
    config = Config.model_validate(
        {
            "model": {"pretrained": "x"},
            "data": {"root": "x"},
            "noise": noise,
            "train": {"output_dir": "x", "steps": 1, "seed": 3},
            "deepspeed": {"zero_optimization": {"stage": 2}},
        }
    )
    return Denoising(sdxl, config, torch.device("cpu"))


def batch(count: int = 3) -> Batch:
    return Batch(
        ids=[f"{i}.jpg" for i in range(count)],
        epochs=[2] * count,
        pixels=torch.zeros(count, 3, 64, 64),
        masks=torch.ones(count, 2, 8, 8),
        captions=["a boy"] * count,
        time_ids=torch.tensor([[64.0, 64, 0, 0, 64, 64]]).expand(count, 6),
    )


def test_default_draws_are_those_of_the_one_stream(velocity: SDXL) -> None:
    drawn = denoising(velocity, {}).load(batch()).draws
    for i, name in enumerate(batch().ids):
        rng = generator(3, 2, name, "noise")
        assert int(drawn.steps[i]) == int(rng.integers(1000))
        for values in (drawn.posterior, drawn.noise):
            numbers = rng.standard_normal((4, 8, 8), dtype=np.float32)
            assert np.array_equal(values[i].numpy(), numbers)


def test_options_change_nothing_but_what_they_name(velocity: SDXL) -> None:
    plain = denoising(velocity, {}).load(batch(200)).draws
    biased = denoising(velocity, {"timesteps": "logit_normal"}).load(batch(200)).draws
    assert torch.equal(biased.noise, plain.noise)
    assert not torch.equal(biased.steps, plain.steps)
    shifted = denoising(velocity, {"offset": 0.1}).load(batch(200)).draws
    assert torch.equal(shifted.steps, plain.steps)
    assert torch.equal(shifted.posterior, plain.posterior)
    shift = (shifted.noise - plain.noise).double() / 0.1
    assert float(shift.std(dim=(2, 3)).max()) < 1e-5  # one number a channel
    per_channel = shift.mean(dim=(2, 3)).flatten().numpy()
    assert len(np.unique(per_channel)) == 800
    assert stats.kstest(per_channel, "norm").pvalue > 1e-3


def test_held_out_noise_does_not_hang_on_the_options(velocity: SDXL) -> None:
    options = {"offset": 0.3, "timesteps": "later", "max_timestep": 500}
    plain, other = (list(denoising(velocity, way).quarters(batch())) for way in ({}, options))
    assert len(plain) == 4
    for quarter, (a, b) in enumerate(zip(plain, other, strict=True)):
        assert torch.equal(a.noisy, b.noisy)
        assert torch.equal(a.steps // 250, torch.full((3,), quarter))


def rescaled(betas: Tensor) -> Tensor:
    """Lin et al. 2023, algorithm 1, in float64."""
    root = (1 - betas.double()).cumprod(0).sqrt()
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


def test_zero_terminal_snr_is_that_of_the_paper_and_is_saved(
    velocity: SDXL, tmp_path: Path
) -> None:
    from diffusers import DDPMScheduler, StableDiffusionXLPipeline

    betas = DDPMScheduler.from_config(velocity.pipeline.scheduler.config).betas
    velocity.set_noise(Noise(zero_terminal_snr=True))
    torch.testing.assert_close(
        velocity.noising.alphas_cumprod.double(), rescaled(betas), rtol=1e-4, atol=1e-7
    )
    assert velocity.noising.alphas_cumprod[-1] == 0
    last = torch.tensor([999])
    latents, noise = torch.randn(2, 1, 4, 8, 8)
    assert torch.equal(velocity.noising.add_noise(latents, noise, last), noise)
    truth = target("v_prediction", latents, noise, velocity.noising.alphas_cumprod, last)
    assert torch.equal(truth, -latents)
    velocity.write(tmp_path / "final")
    saved = StableDiffusionXLPipeline.from_pretrained(tmp_path / "final").scheduler
    assert saved.config.rescale_betas_zero_snr is True
    assert saved.config.timestep_spacing == "trailing"
    assert saved.config.prediction_type == "v_prediction"
    again = SDXL(StableDiffusionXLPipeline.from_pretrained(tmp_path / "final"))
    assert torch.equal(again.noising.alphas_cumprod, velocity.noising.alphas_cumprod)
    saved.set_timesteps(10)
    assert saved.timesteps[0] == 999


def test_min_snr_weights_are_finite_down_to_zero_snr() -> None:
    alphas = torch.tensor([0.9991, 0.5, 0.1, 1e-6, 0.0])
    weights = snr_weight("v_prediction", alphas, torch.arange(5), 5.0)
    assert weights is not None
    snr = [float(a) / (1 - float(a)) for a in alphas]
    exact = [min(s, 5.0) / (s + 1) for s in snr]
    assert weights.tolist() == pytest.approx(exact, rel=1e-4, abs=1e-12)
    assert weights[-1] == 0
    assert math.isfinite(float(weights.sum()))


def test_zero_terminal_snr_needs_v_prediction_and_a_scheduler_that_can(
    tiny_model: Path, velocity: SDXL
) -> None:
    plain = SDXL.load(Model(pretrained=str(tiny_model)), torch.float32, torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"set model.prediction_type=v_prediction"):
        plain.set_noise(Noise(zero_terminal_snr=True))
    from diffusers import PNDMScheduler

    velocity.pipeline.scheduler = PNDMScheduler.from_config(velocity.pipeline.scheduler.config)
    with pytest.raises(ConfigError, match="PNDMScheduler, cannot sample with it"):
        velocity.set_noise(Noise(zero_terminal_snr=True))
