"""LoRAs of rectified-flow transformers: what their files say, and what other tools get."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from fairhuman.cli import main
from fairhuman.config import Lora, Model
from fairhuman.models.families.registry import family_class
from fairhuman.models.method import make_method, save
from fairhuman.testing.tiny_flows import tiny_flux, tiny_flux2_klein, tiny_sd3, tiny_z_image

WEIGHTS = "pytorch_lora_weights.safetensors"
MAKERS: dict[str, Callable[[], Any]] = {
    "flux-1-dev": tiny_flux,
    "flux-1-schnell": lambda: tiny_flux(guided=False),
    "flux-2-klein": tiny_flux2_klein,
    "z-image": tiny_z_image,
    "stable-diffusion-3-5": tiny_sd3,
}
TARGETS = {"flux-2-klein": ["attn.to_q", "attn.to_v", "add_k_proj", "linear_in", "linear_out"]}
"""With layers that another layer is to be joined with, and without some of those."""


@pytest.fixture(scope="module", params=MAKERS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and a LoRA of it, whose scale is not 1; named by its architecture."""
    out = tmp_path_factory.mktemp("flow") / str(request.param)
    MAKERS[request.param]().save_pretrained(out / "model")
    lora = Lora(rank=2, alpha=3.0, targets=TARGETS.get(request.param))
    settings = Model(pretrained=str(out / "model"), method="lora", lora=lora)
    family = family_class(settings).load(settings, torch.float32, torch.device("cpu"))
    method = make_method(family, settings, seed=0)
    rng = torch.Generator().manual_seed(1)
    for p in method.module.parameters():
        if p.requires_grad:
            p.data = torch.randn(p.shape, generator=rng)
    save(method, out / "lora", title="people", architecture=family.architecture, resolution=512)
    return out


def export(trained: Path, out: Path, *words: str, to: str = "comfy-lora") -> int:
    model = str(trained / "lora")
    return main(["export", "--model", model, "--to", to, "--out", str(out), *words])


def updates(pipeline: Any) -> dict[str, Tensor]:
    """What an adapter adds to each weight, as peft computes it."""
    return {
        name: module.get_delta_weight(adapter)
        for name, module in pipeline.transformer.named_modules()
        for adapter in getattr(module, "scaling", {})
    }


def loaded(trained: Path, lora: Path) -> dict[str, Tensor]:
    import diffusers

    pipeline = diffusers.DiffusionPipeline.from_pretrained(trained / "model")
    pipeline.load_lora_weights(lora)
    return updates(pipeline)


def test_diffusers_reads_what_was_exported_as_what_was_trained(
    trained: Path, tmp_path: Path
) -> None:
    assert export(trained, tmp_path / "people.safetensors") == 0
    own = loaded(trained, trained / "lora")
    exported = loaded(trained, tmp_path / "people.safetensors")
    for name, update in own.items():
        torch.testing.assert_close(exported[name], update)
    # What a joined layer of FLUX.2 has beside them is not changed.
    assert all(not exported[name].any() for name in exported.keys() - own.keys())
    assert any(update.any() for update in own.values())


def test_the_names_are_those_that_comfyui_looks_for(trained: Path, tmp_path: Path) -> None:
    """By its comfy/lora.py: `transformer.` and diffusers' names, or its own model's names."""
    assert export(trained, tmp_path / "people.safetensors") == 0
    names = set(load_file(tmp_path / "people.safetensors"))
    own = set(load_file(trained / "lora" / WEIGHTS))
    if trained.name == "flux-2-klein":
        expected = {
            *("img_attn.qkv", "txt_attn.qkv", "img_mlp.0", "img_mlp.2", "txt_mlp.0", "txt_mlp.2")
        }
        assert {name.split(".", 3)[3].rpartition(".lora_")[0] for name in names} == expected
        assert all(name.startswith("diffusion_model.double_blocks.") for name in names)
    elif trained.name == "z-image":
        assert names == {name.replace("transformer.", "diffusion_model.", 1) for name in own}
    else:
        assert names == own


def test_kohyas_keys_are_for_flux(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "people.safetensors"
    if not trained.name.startswith("flux"):
        assert export(trained, out, to="kohya-lora") == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        assert "use --to comfy-lora" in line
        assert not out.exists()
        return
    assert export(trained, out, to="kohya-lora") == 0
    names = set(load_file(out))
    assert all(name.startswith("lora_unet_") and name.count(".") in (1, 2) for name in names)
    assert "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight" in names
    if trained.name == "flux-2-klein":
        own, exported = loaded(trained, trained / "lora"), loaded(trained, out)
        for name, update in own.items():
            torch.testing.assert_close(exported[name], update)
    for again in ("kohya-lora", "comfy-lora"):
        words = ["--model", str(out), "--to", again, "--out", str(tmp_path / "again.safetensors")]
        assert main(["export", *words]) == 2
        assert "has kohya's keys already" in capsys.readouterr().err


def test_diffusers_reads_kohyas_keys_of_flux1_as_what_was_trained(tmp_path: Path) -> None:
    """Its converter has FLUX.1's true sizes in it: layers with true outputs and few inputs."""
    from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers

    double, single = "transformer_blocks.1", "single_transformer_blocks"
    rows = {
        **{f"{double}.attn.{name}": 3072 for name in ("to_q", "to_v", "add_k_proj", "to_add_out")},
        **{f"{double}.{name}": 12288 for name in ("ff.net.0.proj", "ff_context.net.0.proj")},
        **{f"{double}.{name}": 3072 for name in ("attn.to_out.0", "ff.net.2", "ff_context.net.2")},
        **{f"{double}.{name}": 18432 for name in ("norm1.linear", "norm1_context.linear")},
        **{f"{single}.0.attn.{name}": 3072 for name in ("to_q", "to_k", "to_v")},
        **{f"{single}.37.proj_mlp": 12288, f"{single}.37.proj_out": 3072},
        **{f"{single}.37.norm.linear": 9216, f"{single}.2.attn.to_k": 3072},
        **{f"{single}.2.proj_mlp": 12288, "x_embedder": 3072, "proj_out": 64},
        "time_text_embed.guidance_embedder.linear_2": 3072,
    }
    rng = torch.Generator().manual_seed(0)
    tensors, expected, alpha = {}, {}, {}
    for index, (name, outputs) in enumerate(rows.items()):
        rank = 1 + index % 3
        down = torch.randn(rank, 2, generator=rng)
        up = torch.randn(outputs, rank, generator=rng)
        alpha[name] = 1.0 + index
        expected[name] = alpha[name] / rank * up @ down
        tensors[f"transformer.{name}.lora_A.weight"] = down
        tensors[f"transformer.{name}.lora_B.weight"] = up
    settings = {"transformer.lora_alpha": 1, "transformer.alpha_pattern": alpha}
    (tmp_path / "lora").mkdir()
    header = {"lora_adapter_metadata": json.dumps(settings)}
    save_file(tensors, tmp_path / "lora" / WEIGHTS, header)
    out = tmp_path / "people.safetensors"
    assert export(tmp_path, out, to="kohya-lora") == 0

    found = _convert_kohya_flux_lora_to_diffusers(load_file(out))
    found = {name.removeprefix("transformer."): tensor for name, tensor in found.items()}
    layers = {name.rpartition(".lora_")[0] for name in found}
    assert rows.keys() <= layers
    for name in layers:
        update = found[f"{name}.lora_B.weight"] @ found[f"{name}.lora_A.weight"]
        if name in expected:
            torch.testing.assert_close(update, expected[name])
        else:  # joined with one that is adapted
            assert not update.any()


def test_layers_that_cannot_be_one_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layer = "transformer.single_transformer_blocks.0"
    tensors = {
        f"{layer}.{name}.lora_{half}.weight": torch.ones(shape)
        for name, outputs in (("attn.to_q", 8), ("proj_mlp", 24))  # 32 would fit
        for half, shape in (("A", (2, 8)), ("B", (outputs, 2)))
    }
    (tmp_path / "lora").mkdir()
    save_file(tensors, tmp_path / "lora" / WEIGHTS)
    out = tmp_path / "people.safetensors"
    assert export(tmp_path, out, to="kohya-lora") == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "single_blocks.0.linear1 in FLUX.1 do not fit" in line
    assert not out.exists()


def test_alphas_are_exact_in_any_precision(tmp_path: Path) -> None:
    """bfloat16 has no 387."""
    layer = "transformer.transformer_blocks.0.attn.to_"
    tensors = {f"{layer}{letter}.lora_A.weight": torch.ones(129, 8) for letter in "qkv"}
    tensors |= {f"{layer}{letter}.lora_B.weight": torch.ones(8, 129) for letter in "qkv"}
    (tmp_path / "lora").mkdir()
    header = {"modelspec.architecture": "flux-1-schnell/lora"}
    save_file(tensors, tmp_path / "lora" / WEIGHTS, header)
    out = tmp_path / "people.safetensors"
    assert export(tmp_path, out, "--dtype", "bf16", to="kohya-lora") == 0
    found = load_file(out)
    key = "lora_unet_double_blocks_0_img_attn_qkv"
    assert float(found[f"{key}.alpha"]) == found[f"{key}.lora_down.weight"].shape[0] == 387
    assert found[f"{key}.lora_down.weight"].dtype == torch.bfloat16


def test_headers_tell_the_architecture(trained: Path, tmp_path: Path) -> None:
    assert export(trained, tmp_path / "people.safetensors", "--meta", "author=me") == 0
    for file in (trained / "lora" / WEIGHTS, tmp_path / "people.safetensors"):
        with safe_open(file, framework="pt") as opened:
            header = opened.metadata()
        assert header["modelspec.architecture"] == f"{trained.name}/lora"
        assert header["modelspec.resolution"] == "512x512"
        assert header["modelspec.title"] == "people"
    assert header["modelspec.author"] == "me"


def test_all_default_layers_of_flux2_have_names(tmp_path: Path) -> None:
    tiny_flux2_klein().save_pretrained(tmp_path / "model")
    settings = Model(pretrained=str(tmp_path / "model"), method="lora", lora=Lora(rank=2))
    family = family_class(settings).load(settings, torch.float32, torch.device("cpu"))
    save(make_method(family, settings, seed=0), tmp_path / "lora")
    assert export(tmp_path, tmp_path / "people.safetensors") == 0
    names = load_file(tmp_path / "people.safetensors")
    assert any("single_blocks.0.linear1." in name for name in names)


def test_what_cannot_be_converted_is_one_line(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*words: str) -> str:
        assert main(["export", *words]) == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        return line

    lora, comfy = trained / "lora", tmp_path / "people.safetensors"
    assert export(trained, comfy) == 0
    to_folder = ["--to", "diffusers", "--out", str(tmp_path / "out")]
    assert "diffusers opens it as it is" in refused("--model", str(comfy), *to_folder)
    assert "diffusers opens it as it is" in refused("--model", str(lora), *to_folder)
    to_file = ["--to", "single-file", "--out", str(tmp_path / "again.safetensors")]
    assert "is a LoRA; use --to comfy-lora" in refused("--model", str(lora), *to_file)
    assert "already exists" in refused(
        "--model", str(lora), "--to", "comfy-lora", "--out", str(comfy)
    )
    (tmp_path / "odd").mkdir()
    tensors = load_file(lora / WEIGHTS)
    first = next(name for name in tensors if name.endswith(".lora_A.weight"))
    tensors["text_encoder.q.lora_A.weight"] = tensors[first].clone()
    tensors["text_encoder.q.lora_B.weight"] = tensors[first.replace("lora_A", "lora_B")].clone()
    save_file(tensors, tmp_path / "odd" / WEIGHTS, {"lora_adapter_metadata": json.dumps({})})
    again = ["--to", "comfy-lora", "--out", str(tmp_path / "again.safetensors")]
    assert "text_encoder.q: only a transformer's layers" in refused(
        "--model", str(tmp_path / "odd"), *again
    )
    assert not (tmp_path / "again.safetensors").exists()
