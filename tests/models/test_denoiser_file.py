"""A whole transformer as one file: diffusers' own converters make of it what was trained."""

from __future__ import annotations

import json
import re
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.loaders import single_file_utils
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from fairhuman.cli import main
from fairhuman.models.families.sizes import KNOWN
from fairhuman.models.formats.originals import ORIGINALS
from fairhuman.models.formats.weights import Source
from fairhuman.testing.tiny_flows import tiny_flux, tiny_flux2_klein, tiny_sd3, tiny_z_image

Converter = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def of_width(converter: Any, width: int) -> Converter:
    """diffusers' converter of FLUX.1 for another width than the one that is written into it."""
    assert converter.__code__.co_consts.count(3072) == 1
    constants = tuple(width if c == 3072 else c for c in converter.__code__.co_consts)
    code = converter.__code__.replace(co_consts=constants)
    return types.FunctionType(code, converter.__globals__)


FLUX_1 = single_file_utils.convert_flux_transformer_checkpoint_to_diffusers
FLUX_2 = single_file_utils.convert_flux2_transformer_checkpoint_to_diffusers
Z_IMAGE = single_file_utils.convert_z_image_transformer_checkpoint_to_diffusers
CONVERTERS: dict[str, Converter] = {
    "FluxTransformer2DModel": FLUX_1,
    "ZImageTransformer2DModel": Z_IMAGE,
}
MODELS: dict[str, tuple[Callable[[], Any], Converter]] = {
    "flux-1-dev": (tiny_flux, of_width(FLUX_1, 32)),
    "flux-1-schnell": (lambda: tiny_flux(guided=False), of_width(FLUX_1, 32)),
    "flux-2-klein": (tiny_flux2_klein, FLUX_2),
    "z-image": (tiny_z_image, Z_IMAGE),
    "stable-diffusion-3-5": (
        tiny_sd3,
        single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers,
    ),
}
"""By architectures: a tiny model, and what turns its released names into diffusers'."""
TENSORS = {
    "black-forest-labs/FLUX.1-dev": 780,
    "Tongyi-MAI/Z-Image": 453,
}
"""How many tensors the files have that were released."""


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline's folder, named by its architecture, with no two tensors alike."""
    folder = tmp_path_factory.mktemp("whole") / str(request.param)
    pipeline = MODELS[request.param][0]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for tensor in pipeline.transformer.state_dict().values():
            tensor.copy_(torch.randn_like(tensor))
    pipeline.save_pretrained(folder, max_shard_size="40KB")
    return folder


def weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of its transformer."""
    files = (folder / "transformer").glob("*.safetensors")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def export(model: Path, out: Path, *words: str) -> int:
    return main(["export", "--model", str(model), "--to", "single-file", "--out", str(out), *words])


def test_diffusers_reads_what_was_trained(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "people.safetensors"
    assert export(model, out) == 0
    expected = weights(model)
    _same(MODELS[model.name][1](load_file(out)), expected)
    if model.name.startswith("flux-1"):  # of which diffusers opens files of the true width alone
        return
    kind = json.loads((model / "transformer" / "config.json").read_text())["_class_name"]
    opened = getattr(diffusers, kind).from_single_file(
        str(out), config=str(model), subfolder="transformer", local_files_only=True
    )
    _same(opened.state_dict(), expected)


def _same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_weights_are_cast_and_the_header_tells_what_they_are(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "people.safetensors"
    assert export(model, out, "--dtype", "bf16", "--meta", "author=me") == 0
    found = MODELS[model.name][1](load_file(out))
    for name, tensor in weights(model).items():
        assert torch.equal(found[name], tensor.to(torch.bfloat16)), name
    with safe_open(out, framework="pt") as opened:
        header = opened.metadata()
    assert header["modelspec.architecture"] == model.name
    assert header["modelspec.title"] == "people"
    assert header["modelspec.author"] == "me"
    assert re.fullmatch("0x[0-9a-f]{64}", header["modelspec.hash_sha256"])
    assert "modelspec.prediction_type" not in header


@pytest.mark.parametrize("name", TENSORS)
def test_the_published_models_get_the_released_names(name: str) -> None:
    """At their real sizes, on the meta device: diffusers' converters take all, in their shapes."""
    part = KNOWN[name].parts["transformer"]
    with torch.device("meta"):
        empty = getattr(diffusers, part.kind).from_config(part.config).state_dict()
    found = _read(ORIGINALS[part.kind].tensors({k: _source(t) for k, t in empty.items()}))
    assert len(found) == TENSORS[name]
    converted = CONVERTERS[part.kind](found)
    assert {k: t.shape for k, t in converted.items()} == {k: t.shape for k, t in empty.items()}
    assert not found  # the converter has taken each out


def _source(tensor: Tensor) -> Source:
    return Source(tuple(tensor.shape), tensor.dtype, lambda: tensor)


def _read(sources: Mapping[str, Source]) -> dict[str, Tensor]:
    tensors = {name: source.read() for name, source in sources.items()}
    for name, source in sources.items():
        assert tuple(tensors[name].shape) == source.shape
    return tensors


def test_a_transformer_that_is_not_its_configs_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = tmp_path / "model", tmp_path / "people.safetensors"
    tiny_flux().save_pretrained(model)

    def refused() -> str:
        assert export(model, out) == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        assert not out.exists()
        return line

    file = next((model / "transformer").glob("*.safetensors"))
    whole = load_file(file)
    save_file({k: t for k, t in whole.items() if k != "proj_out.bias"}, file)
    assert "proj_out.bias is missing" in refused()
    save_file(whole | {"proj_out.bias": torch.ones(3)}, file)
    assert "proj_out.bias has another shape than its config says" in refused()
    save_file(whole | {"ip_adapter.weight": torch.ones(3)}, file)
    assert "ip_adapter.weight is not in its config" in refused()
    file.unlink()
    assert "transformer: holds no weights" in refused()


def test_a_family_without_the_format_is_told_which_have_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "transformer").mkdir()
    config = json.dumps({"_class_name": "PixArtTransformer2DModel"})
    (tmp_path / "transformer" / "config.json").write_text(config)
    index = json.dumps({"_class_name": "PixArtSigmaPipeline"})
    (tmp_path / "model_index.json").write_text(index)
    assert export(tmp_path, tmp_path / "x.safetensors") == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "is a PixArtSigmaPipeline (PixArt); only SDXL, FLUX.1" in line
