"""Rectified-flow families are what `fairhuman.testing` asks of each, and refuse what is SDXL's."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fairhuman.common.errors import ConfigError
from fairhuman.config import Model
from fairhuman.models.drawing import Picture
from fairhuman.models.empty import empty_model
from fairhuman.models.families.flow import FlowTransformer
from fairhuman.models.families.registry import check_model, family_class, pipelines
from fairhuman.testing.family import (
    CAPTIONS,
    CPU,
    Encode,
    check_captions,
    check_loss,
    check_pictures,
    check_plan,
    check_training,
    farthest,
    load,
    scaled_mean,
)
from fairhuman.testing.tiny_flows import tiny_flux, tiny_flux2_klein, tiny_sd3, tiny_z_image

MAKERS: dict[str, Callable[[], Any]] = {
    "FLUX.1 dev": tiny_flux,
    "FLUX.1 schnell": lambda: tiny_flux(guided=False),
    "Z-Image": tiny_z_image,
    "FLUX.2 klein": tiny_flux2_klein,
    "SD 3.5": tiny_sd3,
}


@pytest.fixture(scope="module", params=MAKERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("family") / request.param.replace(" ", "-")
    MAKERS[request.param]().save_pretrained(out)
    return out


def whitened_patches(pipeline: Any, pixels: Tensor) -> Tensor:
    """FLUX.2's latents, as diffusers' example of its training has them."""
    patches = pipeline._patchify_latents(pipeline.vae.encode(pixels).latent_dist.mode())
    norm = pipeline.vae.bn
    mean, variance = norm.running_mean.view(1, -1, 1, 1), norm.running_var.view(1, -1, 1, 1)
    return (patches - mean) / torch.sqrt(variance + 1e-4)


def predict(pipeline: Any, noisy: Tensor, sigma: Tensor, captions: list[str]) -> Tensor:
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
    if name == "StableDiffusion3Pipeline":
        embeds, _, pooled, _ = pipeline.encode_prompt(
            captions, None, None, do_classifier_free_guidance=False
        )
        return pipeline.transformer(noisy, embeds, pooled, 1000 * sigma).sample
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


def test_the_loss_is_that_of_diffusers_examples(folder: Path) -> None:
    encode: Encode = whitened_patches if folder.name == "FLUX.2-klein" else scaled_mean
    check_loss(folder, predict, encode)


def test_timesteps_are_those_of_the_scheduler(folder: Path) -> None:
    family = load(folder)
    assert isinstance(family, FlowTransformer)
    scheduler = type(family.pipeline.scheduler).from_config(family.pipeline.scheduler.config)
    grid = (96, 64)
    tokens = grid[0] * grid[1] // family.patch**2
    even = torch.linspace(1, 1000, 1000) / 1000
    scheduler.set_timesteps(sigmas=even.flip(0).tolist(), mu=family.mu(tokens))
    ours = family.noising.sigmas(torch.arange(1000), grid)
    torch.testing.assert_close(ours.flip(0), scheduler.sigmas[:-1], rtol=1e-5, atol=1e-7)


def test_a_caption_is_encoded_as_if_it_were_alone(folder: Path) -> None:
    check_captions(folder)


def test_what_is_saved_draws_the_same_pictures(folder: Path, tmp_path: Path) -> None:
    check_pictures(folder, tmp_path)


def test_memory_is_planned_from_the_configs_alone(folder: Path) -> None:
    check_plan(folder)


@torch.no_grad()
def test_pictures_are_those_of_the_pipeline(folder: Path) -> None:
    family = load(folder)
    asked = Picture(CAPTIONS[0], 3, (96, 64), steps=3, guidance=2.0)
    (ours,) = family.drawn(family.pipeline, [asked])
    extra = {"max_sequence_length": 256} if folder.name == "FLUX.1-schnell" else {}
    family.pipeline.set_progress_bar_config(disable=True)
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


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("black-forest-labs/FLUX.1-dev", 11.90),
        ("black-forest-labs/FLUX.2-klein-base-4B", 3.88),
        ("black-forest-labs/FLUX.2-klein-base-9B", 9.08),
        ("stabilityai/stable-diffusion-3.5-large", 8.06),
        ("stabilityai/stable-diffusion-3.5-medium", 2.24),
        ("Tongyi-MAI/Z-Image", 6.15),
    ],
)
def test_published_models_have_the_sizes_that_their_makers_tell(
    name: str, billions: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    family, _, described_by = empty_model(Model(pretrained=name), torch.bfloat16)
    count = sum(p.numel() for p in family.denoiser.parameters()) / 1e9
    assert round(count, 2) == billions
    assert described_by == name


@pytest.mark.nightly
def test_the_kit_trains_a_family(tmp_path: Path) -> None:
    tiny_sd3().save_pretrained(tmp_path / "model")
    check_training(tmp_path / "model", tmp_path)


def test_a_package_adds_a_family_by_its_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package of two files, as pip would install it."""
    (tmp_path / "my_family.py").write_text(
        "from fairhuman.models.families.sd3 import SD3\n\n\nclass Mine(SD3):\n    name = 'Mine'\n"
    )
    told = tmp_path / "my_family-1.0.dist-info"
    told.mkdir()
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: my-family\nVersion: 1.0\n")
    (told / "entry_points.txt").write_text("[fairhuman.families]\nMyPipeline = my_family:Mine\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model_index.json").write_text('{"_class_name": "MyPipeline"}')
    assert "MyPipeline" in pipelines()
    assert family_class(Model(pretrained=str(folder))).name == "Mine"
    del sys.modules["my_family"]
