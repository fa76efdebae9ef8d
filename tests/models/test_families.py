"""Rectified-flow families: the loss is that of diffusers' own training, and what is saved opens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fairhuman.common.errors import ConfigError
from fairhuman.config import Model
from fairhuman.models.drawing import Picture
from fairhuman.models.families.flow import FlowTransformer
from fairhuman.models.families.registry import check_model, family_class, load_model
from fairhuman.testing.tiny_flows import tiny_flux, tiny_flux2_klein, tiny_z_image

CPU = torch.device("cpu")
CAPTIONS = ["a woman with a red hat", "two men at a table"]
MAKERS: dict[str, Callable[[], Any]] = {
    "FLUX.1 dev": tiny_flux,
    "FLUX.1 schnell": lambda: tiny_flux(guided=False),
    "Z-Image": tiny_z_image,
    "FLUX.2 klein": tiny_flux2_klein,
}


@pytest.fixture(scope="module", params=MAKERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("family") / request.param.replace(" ", "-")
    MAKERS[request.param]().save_pretrained(out)
    return out


def load(folder: Path, **settings: Any) -> FlowTransformer:
    found = load_model(Model(pretrained=str(folder), **settings), torch.float32, CPU)
    assert isinstance(found, FlowTransformer)
    return found


def mean_latents(pipeline: Any, pixels: Tensor) -> Tensor:
    """What diffusers' examples train on, without the draw from the posterior."""
    mode = pipeline.vae.encode(pixels).latent_dist.mode()
    if hasattr(pipeline.vae, "bn"):
        mode = pipeline._patchify_latents(mode)
        mean = pipeline.vae.bn.running_mean.view(1, -1, 1, 1)
        std = torch.sqrt(pipeline.vae.bn.running_var.view(1, -1, 1, 1) + 1e-4)
        return (mode - mean) / std
    return (mode - pipeline.vae.config.shift_factor) * pipeline.vae.config.scaling_factor


def prediction(pipeline: Any, noisy: Tensor, sigma: Tensor, captions: list[str]) -> Tensor:
    """Call the transformer as the pipeline does while it samples."""
    name = type(pipeline).__name__
    batch, channels, height, width = noisy.shape
    if name == "FluxPipeline":
        guided = pipeline.transformer.config.guidance_embeds
        embeds, pooled, ids = pipeline.encode_prompt(
            captions, max_sequence_length=512 if guided else 256
        )
        predicted = pipeline.transformer(
            hidden_states=pipeline._pack_latents(noisy, batch, channels, height, width),
            timestep=1000 * sigma / 1000,
            guidance=torch.full((batch,), 1.0) if guided else None,
            pooled_projections=pooled,
            encoder_hidden_states=embeds,
            txt_ids=ids,
            img_ids=pipeline._prepare_latent_image_ids(
                batch, height // 2, width // 2, CPU, torch.float32
            ),
        ).sample
        return pipeline._unpack_latents(predicted, 8 * height, 8 * width, 8)
    if name == "ZImagePipeline":
        states, _ = pipeline.encode_prompt(list(captions), do_classifier_free_guidance=False)
        out = pipeline.transformer(
            list(noisy.unsqueeze(2)), (1000 - 1000 * sigma) / 1000, states
        ).sample
        return -torch.stack([part.squeeze(1) for part in out])
    embeds, ids = pipeline.encode_prompt(captions)
    places = pipeline._prepare_latent_ids(noisy)
    predicted = pipeline.transformer(
        hidden_states=pipeline._pack_latents(noisy),
        timestep=sigma,
        guidance=None,
        encoder_hidden_states=embeds,
        txt_ids=ids,
        img_ids=places,
    ).sample
    return pipeline._unpack_latents_with_ids(predicted, places)


def farthest(one: Image.Image, other: Image.Image) -> int:
    """Return the largest difference of two pictures, of 255."""
    return int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max())


@torch.no_grad()
def test_the_loss_is_that_of_diffusers_examples(folder: Path) -> None:
    import diffusers

    family = load(folder)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    pixels = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = mean_latents(pipeline, pixels)
    posterior = family.posterior(pixels)
    found = family.latents(posterior._replace(std=torch.zeros_like(posterior.std)), latents)
    torch.testing.assert_close(found, latents, rtol=1e-5, atol=1e-6)

    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    steps = torch.tensor([37, 941])
    sigma = family.noising.sigmas(steps, (latents.shape[2], latents.shape[3]))
    noisy = (1 - sigma.double().view(-1, 1, 1, 1)) * latents + sigma.view(-1, 1, 1, 1) * noise
    torch.testing.assert_close(family.noising.add_noise(latents, noise, steps), noisy.float())
    expected = prediction(pipeline, noisy.float(), sigma, list(CAPTIONS))
    prompt = family.encode_captions(CAPTIONS)
    time_ids = torch.zeros(2, 6)
    ours = family.predict(family.denoiser, noisy.float(), steps, prompt, time_ids)
    error = (expected.double() - (noise - latents).double()).square().mean()
    mine = (ours.double() - family.noising.target(latents, noise, steps).double()).square().mean()
    assert ours.shape == latents.shape
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=5e-5)  # of float32, by batch
    assert abs(mine - error) < 1e-6 * error


def test_timesteps_are_those_of_the_scheduler(folder: Path) -> None:
    family = load(folder)
    scheduler = type(family.pipeline.scheduler).from_config(family.pipeline.scheduler.config)
    grid = (96, 64)
    tokens = grid[0] * grid[1] // family.patch**2
    even = torch.linspace(1, 1000, 1000) / 1000
    scheduler.set_timesteps(sigmas=even.flip(0).tolist(), mu=family.mu(tokens))
    ours = family.noising.sigmas(torch.arange(1000), grid)
    torch.testing.assert_close(ours.flip(0), scheduler.sigmas[:-1], rtol=1e-5, atol=1e-7)


@torch.no_grad()
def test_a_caption_is_encoded_as_if_it_were_alone(folder: Path) -> None:
    family = load(folder)
    together = family.encode_captions([*CAPTIONS, None])
    for index, text in enumerate([*CAPTIONS, ""]):
        alone = family.encode_captions([text])
        for part, whole in zip(alone, together, strict=True):
            assert torch.equal(part[0], whole[index])
    assert family.prompt_bytes() == sum(p.numel() * p.element_size() for p in alone)


def test_the_end_of_a_long_caption_is_said_to_be_cut(folder: Path) -> None:
    family = load(folder)
    counts = family.token_counts(["a" * 20, "a " * 700])
    assert counts[0] <= family.tokens < counts[1]
    (line,) = family.fit_captions(counts)
    assert f"longer than {family.tokens} tokens" in line
    assert family.fit_captions(counts[:1]) == []


def test_what_is_saved_draws_the_same_pictures(folder: Path, tmp_path: Path) -> None:
    family = load(folder)
    family.write(tmp_path / "final")
    again = load(tmp_path / "final")
    asked = [Picture(text, 3 + i, (64, 96), steps=2) for i, text in enumerate(CAPTIONS)]
    before, after = (list(each.drawn(each.pipeline, asked)) for each in (family, again))
    assert [one.tobytes() for one in before] == [one.tobytes() for one in after]
    (alone,) = family.drawn(family.pipeline, asked[1:])
    assert alone.size == (64, 96)
    assert farthest(alone, before[1]) <= 1


@torch.no_grad()
def test_pictures_are_those_of_the_pipeline(folder: Path) -> None:
    family = load(folder)
    asked = Picture(CAPTIONS[0], 3, (96, 64), steps=3, guidance=2.0)
    (ours,) = family.drawn(family.pipeline, [asked])
    extra = {"max_sequence_length": 256} if family.tokens == 256 else {}
    theirs = family.pipeline(
        prompt=CAPTIONS[:1],
        height=64,
        width=96,
        num_inference_steps=3,
        guidance_scale=2.0,
        generator=[torch.Generator().manual_seed(3)],
        **extra,
    ).images[0]
    assert farthest(ours, theirs) <= 1


def test_a_missing_tensor_is_named_before_weights_are_read(folder: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    file = broken / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[0]
    del tensors[name]
    save_file(tensors, file)
    with pytest.raises(ConfigError, match=rf"model.pretrained = .*{name} is missing"):
        check_model(Model(pretrained=str(broken)))


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"method": "controlnet"}, "model.method = 'controlnet'"),
        ({"prediction_type": "epsilon"}, "model.prediction_type"),
        ({"long_captions": "chunk"}, "model.long_captions = 'chunk'"),
        ({"lora": {"text_encoders": True}}, "model.lora.text_encoders"),
    ],
)
def test_settings_of_sdxl_alone_are_refused(
    folder: Path, settings: dict[str, Any], key: str
) -> None:
    model = Model.model_validate({"pretrained": str(folder), **settings})
    name = family_class(model).name
    with pytest.raises(ConfigError, match=f"{key}: is for SDXL, and the model is {name}"):
        check_model(model)
