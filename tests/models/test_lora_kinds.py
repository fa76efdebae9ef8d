"""DoRA, rsLoRA, LoKr and LoHa: what they compute, what is saved, and what other tools get."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_steps import CPU, DOUBLE, adapted, embedded, trained
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fairhuman.cli import main
from fairhuman.common.errors import ConfigError, UserError
from fairhuman.common.hub import Named
from fairhuman.config import Lora, Model, load_config
from fairhuman.models.families.sdxl.model import SDXL
from fairhuman.models.lora_file import check_lora, find_lora, load_lora
from fairhuman.models.method import make_method, save

TARGETS = ["to_q", "to_k", "to_out.0", "ff.net.2", "conv1", "conv_shortcut", "proj_in"]
WEIGHTS = "pytorch_lora_weights.safetensors"
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"kind": "lora", "alpha": 6.0},
    "dora": {"kind": "dora", "alpha": 6.0, "text_encoders": False},
    "rslora": {"kind": "rslora", "alpha": 6.0},
    "loha": {"kind": "loha", "alpha": 6.0},
    "lokr": {"kind": "lokr", "alpha": 6.0, "rank": 2, "factor": 2},
    "lokr of whole factors": {"kind": "lokr", "alpha": 6.0, "rank": 64},
}


def load(folder: Path) -> SDXL:
    return SDXL.load(Model(pretrained=str(folder)), torch.float32, CPU)


@torch.no_grad()
def says(pipeline: Any) -> list[Tensor]:
    """What the text encoders and the UNet answer to fixed input, in float64."""
    for part in (pipeline.unet, pipeline.text_encoder, pipeline.text_encoder_2):
        part.to(DOUBLE).eval()
    embeds, pooled = embedded(pipeline, ["a girl in a red shirt"])
    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3), dtype=DOUBLE)
    conditions = {"text_embeds": pooled, "time_ids": torch.full((1, 6), 64.0)}
    noise = pipeline.unet(noisy, torch.tensor([500]), embeds, added_cond_kwargs=conditions).sample
    return [embeds, pooled, noise]


def merged(weight: Tensor, parts: dict[str, Tensor]) -> Tensor:
    """A weight with an adapter of kohya's or LyCORIS' keys, by the formulas of their papers."""
    p = {name: part.double() for name, part in parts.items()}
    alpha = float(p["alpha"])
    if "lora_up.weight" in p:
        up, down = p["lora_up.weight"].flatten(1), p["lora_down.weight"].flatten(1)
        new = weight + (alpha / len(down) * up @ down).view(weight.shape)
        if "dora_scale" in p:
            norms = new.flatten(1).norm(dim=1).view(-1, *[1] * (weight.ndim - 1))
            assert p["dora_scale"].shape == norms.shape
            new = p["dora_scale"] * new / norms
        return new
    if "hada_w1_a" in p:
        product = (p["hada_w1_a"] @ p["hada_w1_b"]) * (p["hada_w2_a"] @ p["hada_w2_b"])
        return weight + (alpha / len(p["hada_w1_b"]) * product).view(weight.shape)
    second = p["lokr_w2"] if "lokr_w2" in p else p["lokr_w2_a"] @ p["lokr_w2_b"]
    scale = 1.0 if "lokr_w2" in p else alpha / len(p["lokr_w2_b"])
    first = p["lokr_w1"]
    if second.ndim == 4:
        first = first[:, :, None, None]
    return weight + scale * torch.kron(first, second).reshape(weight.shape)


def flat_names(pipeline: Any) -> dict[str, nn.Module]:
    """Layers by their names in kohya's files, with diffusers' names of the UNet's blocks."""
    from fairhuman.models.formats.lora_names import LoraNames

    names = LoraNames(dict(pipeline.unet.config))
    return {
        names.to_kohya(f"{part}.{name}"): module
        for part in ("unet", "text_encoder", "text_encoder_2")
        for name, module in getattr(pipeline, part).named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) and (part == "unet" or name.endswith("_proj"))
    }


@pytest.mark.parametrize("name", KINDS)
def test_what_is_trained_saved_and_exported_is_the_kind_s_formula(
    tiny_model: Path, tmp_path: Path, name: str
) -> None:
    """Trained adapters, their file read back, and plain weights with the exported parts say one."""
    settings = {"rank": 4, **KINDS[name], "targets": TARGETS}
    sdxl, method = adapted(tiny_model, **settings)
    with torch.no_grad():
        for key, p in trained(method.module).items():
            if "magnitude" in key:
                p.mul_(1 + 0.1 * torch.rand(p.shape, generator=torch.Generator().manual_seed(2)))
    save(method, tmp_path / "final")
    expected = says(sdxl.pipeline)
    plain = load(tiny_model).pipeline
    without = says(copy.deepcopy(plain))
    adapted_parts = (
        zip(expected, without, strict=True) if name != "dora" else [(expected[2], without[2])]
    )
    assert all((a - b).abs().max() > 1e-3 for a, b in adapted_parts)

    read = load(tiny_model)
    named = Named("--lora", str(tmp_path / "final"))
    file = find_lora(named)
    check_lora(named, file, dict(read.pipeline.unet.config))
    load_lora(read.pipeline, file, 1.0)
    for found, said in zip(says(read.pipeline), expected, strict=True):
        torch.testing.assert_close(found, said, rtol=0, atol=1e-9)

    out = tmp_path / "people.safetensors"
    words = ["--model", tmp_path / "final", "--to", "comfy-lora", "--config", tiny_model]
    assert main(["export", *map(str, words), "--out", str(out)]) == 0
    layers: dict[str, dict[str, Tensor]] = {}
    for key, part in load_file(out).items():
        layer, _, rest = key.partition(".")
        layers.setdefault(layer, {})[rest] = part
    modules = flat_names(plain)
    for layer, parts in layers.items():
        weight: Any = modules[layer].to(DOUBLE).weight
        weight.data = merged(weight.data, parts)
    for found, said in zip(says(plain), expected, strict=True):
        torch.testing.assert_close(found, said, rtol=0, atol=1e-6)  # alphas are float32 there


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_starts_from_the_model_as_it_is(tiny_model: Path, name: str) -> None:
    settings = Model(
        pretrained=str(tiny_model),
        method="lora",
        lora=Lora(**{"rank": 4, "text_encoders": True, **KINDS[name]}, targets=TARGETS),
    )
    sdxl = load(tiny_model)
    method = make_method(sdxl, settings, seed=0)
    parts = ("lora_", "lokr_", "hada_")
    assert all(any(part in key for part in parts) for key in trained(method.module))
    for found, said in zip(says(sdxl.pipeline), says(load(tiny_model).pipeline), strict=True):
        torch.testing.assert_close(found, said, rtol=0, atol=1e-6)


def test_a_dora_comes_back_from_lycoris_keys_bit_by_bit(tiny_model: Path, tmp_path: Path) -> None:
    _, method = adapted(tiny_model, **KINDS["dora"], targets=TARGETS)
    save(method, tmp_path / "final")
    file, back = tmp_path / "people.safetensors", tmp_path / "back"
    for words in (
        ["--model", tmp_path / "final", "--to", "comfy-lora", "--out", file],
        ["--model", file, "--to", "diffusers", "--out", back],
    ):
        assert main(["export", "--config", str(tiny_model), *map(str, words)]) == 0
    with safe_open(file, "pt") as opened:
        assert opened.metadata()["ss_network_module"] == "lycoris.kohya"
    before, after = (load_file(folder / WEIGHTS) for folder in (tmp_path / "final", back))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert sum("magnitude" in key for key in before) == len(before) / 3
    loaded = load(tiny_model)
    loaded.pipeline.load_lora_weights(back)  # diffusers' own
    for found, said in zip(says(loaded.pipeline), says(method.pipeline), strict=True):
        torch.testing.assert_close(found, said, rtol=0, atol=1e-9)


def test_what_cannot_be_converted_is_one_line(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layer = "lora_unet_input_blocks_4_1_proj_in"
    plain = {
        f"{layer}.lora_down.weight": torch.ones(2, 8),
        f"{layer}.lora_up.weight": torch.ones(8, 2),
    }
    other = {key.replace("proj_in", "proj_out"): part + 1 for key, part in plain.items()}
    dora, columns = torch.ones(8, 1), torch.ones(1, 8)
    text = {
        key.replace(layer, "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"): part
        for key, part in (plain | {f"{layer}.dora_scale": dora}).items()
    }
    metadata = {"lora_adapter_metadata": json.dumps({"unet.r": 4})}
    lokr = {"unet.conv_in.lokr_w1": torch.ones(2, 2), "unet.conv_in.lokr_w2": torch.ones(4, 4)}
    cases: list[tuple[str, dict[str, Tensor], str]] = [
        ("diffusers", plain | {f"{layer}.dora_scale": columns}, "wd_on_output=True"),
        ("diffusers", plain | other | {f"{layer}.dora_scale": dora}, "1 of its 2 layers are DoRA"),
        ("diffusers", text, "diffusers loads those of the UNet alone"),
        ("diffusers", {f"{layer}.lokr_w1": torch.ones(2, 2)}, "only LoRA and DoRA"),
        ("comfy-lora", lokr, "says neither rank nor alpha of unet's layers"),
        ("comfy-lora", lokr | {"unet.conv_in.lokr_t2": torch.ones(2)}, "only these can be"),
    ]
    for form, tensors, words in cases:
        save_file(tensors, tmp_path / "a.safetensors", metadata)
        out = tmp_path / ("out" if form == "diffusers" else "out.safetensors")
        given = ["--model", str(tmp_path / "a.safetensors"), "--to", form, "--out", str(out)]
        assert main(["export", *given]) == 2
        said = capsys.readouterr().err
        assert words in said
        assert said.count("\n") == 1
        assert not out.exists()
    save_file(lokr, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="header has no lora_adapter_metadata"):
        load_lora(load(tiny_model).pipeline, tmp_path / "a.safetensors", 1.0)
    magnitude = {"text_encoder.a.lora_magnitude_vector": dora, "unet.a.lora_A.weight": dora + 1}
    for tensors, words in (
        (plain | {f"{layer}.dora_scale": dora}, "convert it first"),
        (magnitude, "a DoRA of the text encoders"),
    ):
        save_file(tensors, tmp_path / "a.safetensors")
        with pytest.raises(UserError, match=words):
            check_lora(Named("--lora", "a"), tmp_path / "a.safetensors", {})


def test_settings_of_another_kind_are_named(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("""\
model: {pretrained: x, method: lora}
data: {root: x}
train: {output_dir: x, steps: 9}
deepspeed: zero2
""")
    for override, words in (
        ("model.lora={kind: rslora, rank: 64}", "give a number, such as 8 for a scaling of 1"),
        ("model.lora={kind: dora, text_encoders: true}", "magnitudes into the UNet alone"),
        ("model.lora={factor: 8}", "model.lora.factor = 8: is for kind=lokr"),
    ):
        with pytest.raises(ConfigError) as caught:
            load_config(path, [override])
        assert words in str(caught.value)
    rslora = load_config(path, ["model.lora={kind: rslora, alpha: 8, rank: 64}"]).model.lora
    assert rslora.alpha == math.sqrt(rslora.rank)
