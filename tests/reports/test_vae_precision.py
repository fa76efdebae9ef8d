"""The VAE is never rounded: what OUT/final ships is what the source holds, in float32."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fairhuman.config import Model
from fairhuman.data.cache_fill import digest_of
from fairhuman.models.families.sdxl.model import SDXL
from fairhuman.models.formats.single_file import to_single_file
from fairhuman.models.method import Full, save

VAE = Path("vae") / "diffusion_pytorch_model.safetensors"
CPU = torch.device("cpu")


def stored(model: Path, folder: Path, dtype: torch.dtype) -> Path:
    """Copy a pipeline, its VAE with full mantissas and in another type."""
    shutil.copytree(model, folder)
    rng = torch.Generator().manual_seed(0)
    noisy = {
        name: (tensor + 1e-3 * torch.randn(tensor.shape, generator=rng)).to(dtype)
        for name, tensor in load_file(folder / VAE).items()
    }
    save_file(noisy, folder / VAE, {"format": "pt"})
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("way", ["folder", "single file", "model.vae"])
def test_the_final_vae_is_bit_equal_to_the_source_s(
    tiny_model: Path, tmp_path: Path, dtype: torch.dtype, way: str
) -> None:
    source = stored(tiny_model, tmp_path / "source", dtype)
    settings = Model(pretrained=str(source))
    if way == "single file":
        file = tmp_path / "model.safetensors"
        to_single_file(source, file)
        settings = Model(pretrained=str(file), config=str(source))
    elif way == "model.vae":
        settings = Model(pretrained=str(tiny_model), vae=str(source / "vae"))
    sdxl = SDXL.load(settings, torch.bfloat16, CPU)
    assert {p.dtype for p in sdxl.denoiser.parameters()} == {torch.bfloat16}
    save(Full(sdxl), tmp_path / "final")
    expected = {name: tensor.float() for name, tensor in load_file(source / VAE).items()}
    found = load_file(tmp_path / "final" / VAE)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], tensor), name
    config = json.loads((tmp_path / "final" / "vae" / "config.json").read_text())
    assert config["_class_name"] == "AutoencoderKL"


def test_the_cache_tells_a_rounded_vae_from_its_source(tiny_model: Path, tmp_path: Path) -> None:
    source = stored(tiny_model, tmp_path / "source", torch.float32)
    sdxl = SDXL.load(Model(pretrained=str(source)), torch.bfloat16, CPU)
    before = digest_of(sdxl.frozen_vae)
    sdxl.vae.to(torch.bfloat16).to(torch.float32)
    assert digest_of(sdxl.frozen_vae) != before


def vae_that_needs_no_upcast(source: Path, folder: Path) -> Path:
    shutil.copytree(source, folder)
    file = folder / "vae" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "force_upcast": False}))
    return folder


@pytest.mark.parametrize(
    ("upcast", "dtype", "precision", "encoding"),
    [
        (True, torch.bfloat16, "auto", torch.float32),
        (False, torch.bfloat16, "auto", torch.bfloat16),
        (False, torch.float32, "auto", torch.float32),
        (False, torch.float16, "auto", torch.float32),
        (False, torch.bfloat16, "fp32", torch.float32),
        (True, torch.float32, "bf16", torch.bfloat16),
    ],
)
def test_images_are_encoded_in_what_model_and_vae_say(
    tiny_model: Path,
    tmp_path: Path,
    upcast: bool,
    dtype: torch.dtype,
    precision: Any,
    encoding: torch.dtype,
) -> None:
    source = tiny_model if upcast else vae_that_needs_no_upcast(tiny_model, tmp_path / "model")
    sdxl = SDXL.load(Model(pretrained=str(source), vae_precision=precision), dtype, CPU)
    pixels = torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = sdxl.posterior(pixels)
    with torch.no_grad():
        plain = sdxl.vae.encode(pixels).latent_dist
    assert {part.dtype for part in found} == {torch.float32}
    assert {p.dtype for p in sdxl.vae.parameters()} == {torch.float32}
    for part, right in zip(found, (plain.mean, plain.std), strict=True):
        error = float((part - right).norm() / right.norm())
        # Of bf16's 8 bits, over some ten layers.
        assert 1e-4 < error < 3e-2 if encoding == torch.bfloat16 else error < 1e-5


def test_the_cache_tells_what_images_were_encoded_in(tiny_model: Path, tmp_path: Path) -> None:
    source = vae_that_needs_no_upcast(tiny_model, tmp_path / "model")
    digests = [
        digest_of(SDXL.load(settings, torch.bfloat16, CPU).frozen_vae)
        for settings in (
            Model(pretrained=str(source), vae_precision=way) for way in ("auto", "bf16", "fp32")
        )
    ]
    assert digests[0] == digests[1] != digests[2]
