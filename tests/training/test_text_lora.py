"""Low-rank adapters of the text encoders: gradients, what a run does with them, what is saved."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_steps import (
    CPU,
    DOUBLE,
    LR,
    RANKS,
    Way,
    adapted,
    embedded,
    plain_gradients,
    step_of,
    trained,
    weights_of,
)
from PIL import Image
from ranks import run_ranks
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from fairhuman.cli import main
from fairhuman.common.errors import ConfigError
from fairhuman.config import Lora, Model, load_config
from fairhuman.models.families.sdxl.model import SDXL
from fairhuman.models.generate import Sampling, Source, generate
from fairhuman.models.method import make_method, save

CAPTIONS = ["a girl in a red shirt", None, "a boy"]
WEIGHTS = "pytorch_lora_weights.safetensors"

WAYS = [
    Way(1, "exact"),
    Way(1, "global"),
    Way(2, "sum", checkpointed=True),
    Way(2, "amortized"),
    Way(3, "exact", checkpointed=True),
    Way(3, "sketch", checkpointed=True),
]


@pytest.mark.parametrize("checkpointed", [False, True])
def test_each_adapter_s_gradient_is_autograd_s_through_diffusers_pipeline(
    tiny_model: Path, checkpointed: bool
) -> None:
    """In float64, twice over one graph, with a dropped caption; none is without a gradient."""
    sdxl, method = adapted(tiny_model, DOUBLE, checkpointed)
    method.module.train()
    random = torch.Generator().manual_seed(0)
    noisy, target = torch.randn(2, 3, 4, 8, 8, generator=random, dtype=DOUBLE)
    steps, time_ids = torch.tensor([10, 500, 900]), torch.full((3, 6), 64.0)

    prediction = sdxl.predict(method.module, noisy, steps, sdxl.tokenize(CAPTIONS), time_ids)
    losses = [(prediction - target).square().mean(), prediction[:, :, :3].square().mean()]
    embeds, pooled = embedded(sdxl.pipeline, CAPTIONS)
    conditions = {"text_embeds": pooled, "time_ids": time_ids}
    plain = sdxl.pipeline.unet(noisy, steps, embeds, added_cond_kwargs=conditions).sample
    torch.testing.assert_close(prediction, plain, rtol=0, atol=1e-12)
    parameters = trained(method.module)
    assert {name.partition(".")[0] for name in parameters} == {
        "unet",
        "text_encoder",
        "text_encoder_2",
    }
    for loss, same in zip(
        losses, [(plain - target).square().mean(), plain[:, :, :3].square().mean()], strict=True
    ):
        found = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True)
        expected = torch.autograd.grad(same, list(parameters.values()), retain_graph=True)
        for name, ours, theirs in zip(parameters, found, expected, strict=True):
            assert theirs.abs().max() > 0, name
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-14)


def test_the_unet_s_adapters_start_as_without_and_the_rest_is_frozen(tiny_model: Path) -> None:
    def start(text_encoders: bool) -> dict[str, nn.Parameter]:
        lora = Lora(rank=4, text_encoders=text_encoders)
        settings = Model(pretrained=str(tiny_model), method="lora", lora=lora)
        return trained(make_method(SDXL.load(settings, torch.float32, CPU), settings, 0).module)

    plain, both = start(False), start(True)
    assert all(torch.equal(p, both[f"unet.{name}"]) for name, p in plain.items())
    assert all("lora_" in name for name in both)
    text = {name: p for name, p in both.items() if name.startswith("text_encoder")}
    # Four layers of each block, but for the first encoder's last, which nothing reads.
    assert len(text) == 2 * 4 * (1 + 2)
    assert all(min(p.shape) == 4 for p in text.values())


def stepped(people: str, model: str) -> dict[Way, Any]:
    """On every rank: a step of each way, as the objectives' weights and the parameters' moves."""
    torch.set_num_threads(1)
    results = {}
    for way in WAYS:
        engine, step = step_of(way, Path(people), Path(model))
        groups = engine.optimizer.param_groups
        if way.mode == "amortized":
            # The step after a refresh, from where the refresh began.
            for group in groups:
                group["lr"] = 0.0
            step()
            for group in groups:
                group["lr"] = LR
        before = weights_of(engine)
        _, balance = step()
        after = weights_of(engine)
        results[way] = (
            balance.weights,
            {name: (before[name] - after[name]) / LR for name in before},
        )
        engine.destroy()
    return results


@pytest.mark.nightly
def test_a_step_of_two_ranks_moves_all_adapters_along_the_objectives_gradients(
    people: Path, tiny_model: Path
) -> None:
    """In every mode and ZeRO stage, with accumulation and dropped captions."""
    rows = plain_gradients(WAYS[0], people, tiny_model)
    for results in run_ranks(stepped, RANKS, str(people), str(tiny_model)):
        for way, (weights, moves) in results.items():
            assert moves.keys() == rows.keys()
            assert way.mode == "global" or min(weights) > 0
            for name, row in rows.items():
                expected = torch.einsum("k,k...->...", torch.tensor(weights, dtype=DOUBLE), row)
                moved = moves[name].double()
                error = float((moved - expected).norm() / expected.norm())
                assert error < 1e-3, (way, name, error)


@pytest.mark.parametrize("alpha", [None, 1.5])
def test_what_is_saved_encodes_the_same_when_it_is_loaded_back(
    tiny_model: Path, tmp_path: Path, alpha: float | None
) -> None:
    """By diffusers, as it is and through kohya's form, with the names that other tools know."""
    sdxl, method = adapted(tiny_model, alpha=alpha)
    save(method, tmp_path / "final")
    kohya = tmp_path / "people.safetensors"
    for words in (
        ["--model", tmp_path / "final", "--to", "comfy-lora", "--out", kohya],
        ["--model", kohya, "--to", "diffusers", "--out", tmp_path / "back"],
    ):
        assert main(["export", *map(str, words)]) == 0
    layer = "encoder_layers_0_self_attn_q_proj"
    assert {
        f"lora_te{n}_text_model_{layer}.{part}"
        for n in (1, 2)
        for part in ("lora_down.weight", "lora_up.weight", "alpha")
    } < load_file(kohya).keys()
    names = load_file(tmp_path / "final" / WEIGHTS).keys()
    assert names == load_file(tmp_path / "back" / WEIGHTS).keys()
    for encoder in ("text_encoder", "text_encoder_2"):
        own = [name for name in names if name.startswith(f"{encoder}.")]
        assert own
        assert all(name.startswith(f"{encoder}.text_model.encoder.layers.") for name in own)
    with safe_open(tmp_path / "final" / WEIGHTS, "pt") as file:
        header = json.loads(file.metadata()["lora_adapter_metadata"])
    for part in ("unet", "text_encoder", "text_encoder_2"):
        assert header[f"{part}.lora_alpha"] == (4 if alpha is None else alpha)
    assert str(tiny_model) not in json.dumps(header)  # it is published

    captions = [caption for caption in CAPTIONS if caption]
    expected = [part.detach() for part in embedded(sdxl.pipeline, captions)]
    plain = SDXL.load(Model(pretrained=str(tiny_model)), torch.float32, CPU)
    assert all(
        (said - found).abs().max() > 0.01
        for said, found in zip(expected, embedded(plain.pipeline, captions), strict=True)
    )
    for place in (tmp_path / "final", tmp_path / "back", kohya):
        loaded = copy.deepcopy(plain.pipeline)
        loaded.load_lora_weights(place)
        for found, said in zip(embedded(loaded, captions), expected, strict=True):
            torch.testing.assert_close(found, said, rtol=1e-4, atol=1e-5)


def test_generate_draws_what_the_trained_pipeline_draws(tiny_model: Path, tmp_path: Path) -> None:
    from fairhuman.models.families.sdxl.drawing import draw

    _, method = adapted(tiny_model)
    save(method, tmp_path / "lora")
    (expected,) = draw(method.pipeline, ["a girl"], seed=3, size=64, steps=2)
    ways: dict[str, dict[str, Any]] = {"without": {}, "with": {"lora": tmp_path / "lora"}}
    drawn = {}
    for name, options in ways.items():
        (path,) = generate(
            Source(str(tiny_model), **options),
            ["a girl"],
            tmp_path / name,
            Sampling(seed=3, steps=2, size=64),
        )
        drawn[name] = pixels(Image.open(path))
    torch.testing.assert_close(drawn["with"], pixels(expected), rtol=0, atol=1)
    assert (drawn["without"] - pixels(expected)).abs().max() > 8


def pixels(picture: Image.Image) -> Tensor:
    return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).int()


@pytest.mark.parametrize("method", ["full", "controlnet", "t2i_adapter"])
def test_other_methods_refuse_it(tmp_path: Path, method: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        f"model: {{pretrained: x, method: {method}, lora: {{text_encoders: true}}}}\n"
        "data: {root: x}\ntrain: {output_dir: x, steps: 1}\n"
        "deepspeed: {zero_optimization: {stage: 2}}\n"
    )
    with pytest.raises(ConfigError, match=r"model\.lora is for method=lora"):
        load_config(file)
