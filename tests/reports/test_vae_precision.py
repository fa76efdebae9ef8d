"""The VAE is never rounded: what OUT/final ships is what the source holds, in float32."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fairhuman.config import Model
from fairhuman.data.cache_fill import vae_digest
from fairhuman.models.formats.single_file import to_single_file
from fairhuman.models.method import Full, save
from fairhuman.models.sdxl import SDXL

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
    assert {p.dtype for p in sdxl.unet.parameters()} == {torch.bfloat16}
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
    before = vae_digest(sdxl)
    sdxl.vae.to(torch.bfloat16).to(torch.float32)
    assert vae_digest(sdxl) != before
