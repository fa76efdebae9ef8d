"""Low-rank adapters: what they start from, what is trained, and what other tools load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fairhuman.common.errors import ConfigError, UserError
from fairhuman.config import Lora, Model
from fairhuman.models.families.sdxl.model import SDXL
from fairhuman.models.formats.lora import WEIGHTS_NAME, from_kohya, to_kohya
from fairhuman.models.formats.weights import open_weights
from fairhuman.models.generate import Sampling, Source, generate
from fairhuman.models.method import make_method, save

EVERYWHERE = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "conv1", "proj_in"]


def load(folder: Path) -> SDXL:
    return SDXL.load(Model(pretrained=str(folder)), torch.float32, torch.device("cpu"))


def settings(folder: Path, **lora: Any) -> Model:
    return Model(pretrained=str(folder), method="lora", lora=Lora(**lora))


@torch.no_grad()
def says(sdxl: SDXL) -> Tensor:
    """What the UNet predicts for fixed input."""
    random = torch.Generator().manual_seed(0)
    noisy = torch.randn(2, 4, 8, 8, generator=random)
    prompt = sdxl.encode_captions(["a girl in a red shirt", None])
    steps, time_ids = torch.tensor([10, 900]), torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)
    return sdxl.predict(sdxl.denoiser.eval(), noisy, steps, prompt, time_ids)


def as_if_trained(module: nn.Module) -> None:
    """Give B, which starts at zero, some values."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for name, parameter in module.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.05)


def test_it_starts_from_the_model_as_it_is_and_trains_the_adapters_alone(tiny_model: Path) -> None:
    sdxl = load(tiny_model)
    before = says(sdxl)
    method = make_method(sdxl, settings(tiny_model, rank=4), seed=0)
    torch.testing.assert_close(says(sdxl), before)
    trained = {n: p for n, p in method.module.named_parameters() if p.requires_grad}
    adapted = [n for n, m in load(tiny_model).denoiser.named_modules() if isinstance(m, nn.Linear)]
    adapted = [n for n in adapted if n.endswith(("to_q", "to_k", "to_v", "to_out.0"))]
    assert len(trained) == 2 * len(adapted) > 0
    assert all("lora_" in name for name in trained)
    for name, parameter in trained.items():
        assert min(parameter.shape) == 4, name


def test_the_same_seed_gives_the_same_adapters_and_leaves_torch_s_own_numbers(
    tiny_model: Path,
) -> None:
    def first(seed: int) -> Tensor:
        method = make_method(load(tiny_model), settings(tiny_model), seed)
        return next(p for n, p in method.module.named_parameters() if "lora_A" in n)

    state = torch.get_rng_state()
    assert torch.equal(first(0), first(0))
    assert not torch.equal(first(0), first(1))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("alpha", [None, 8.0, 1.5])
def test_what_is_saved_says_the_same_when_it_is_loaded_back(
    tiny_model: Path, tmp_path: Path, alpha: float | None
) -> None:
    """By diffusers, as it is and through kohya's form, rank and alpha included."""
    trained = load(tiny_model)
    method = make_method(
        trained, settings(tiny_model, rank=4, alpha=alpha, targets=EVERYWHERE), seed=0
    )
    as_if_trained(method.module)
    expected = says(trained)
    save(method, tmp_path / "final")
    to_kohya(tmp_path / "final", tmp_path / "kohya.safetensors", unet=trained.pipeline.unet.config)
    from_kohya(tmp_path / "kohya.safetensors", tmp_path / "back", unet=trained.pipeline.unet.config)
    assert (expected - says(load(tiny_model))).abs().max() > 0.01
    for folder in ("final", "back"):
        loaded = load(tiny_model)
        loaded.pipeline.load_lora_weights(tmp_path / folder)
        torch.testing.assert_close(says(loaded), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("target", "message"),
    [("to_x", "has no layer 'to_x'"), ("attn1", "neither a linear layer nor a convolution")],
)
def test_a_target_that_cannot_be_adapted_is_named(
    tiny_model: Path, target: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_method(load(tiny_model), settings(tiny_model, targets=["to_q", target]), seed=0)


def test_pictures_are_drawn_with_a_lora_and_one_that_does_not_fit_is_named(
    tiny_model: Path, tmp_path: Path
) -> None:
    method = make_method(load(tiny_model), settings(tiny_model, targets=EVERYWHERE), seed=0)
    as_if_trained(method.module)
    save(method, tmp_path / "lora")
    drawn = {}
    ways: dict[str, dict[str, Any]] = {
        "without": {},
        "none of it": {"lora": tmp_path / "lora", "lora_scale": 0.0},
        "with": {"lora": tmp_path / "lora"},
    }
    for name, options in ways.items():
        (path,) = generate(
            Source(str(tiny_model), **options),
            ["a girl"],
            tmp_path / name,
            Sampling(steps=2, size=64),
        )
        drawn[name] = path.read_bytes() if name == "with" else pixels(path)
    assert drawn["without"] == drawn["none of it"]
    assert pixels(tmp_path / "with" / "0000.png") != drawn["without"]
    assert b"lora" in drawn["with"]
    (tmp_path / "other.safetensors").write_bytes(b"no safetensors")
    for wrong in ("other.safetensors", "nowhere.safetensors", "without"):
        with pytest.raises(UserError, match=wrong):
            generate(Source(str(tiny_model), lora=tmp_path / wrong), ["x"], tmp_path / "x")
    assert not (tmp_path / "x").exists()


def pixels(path: Path) -> bytes:
    from PIL import Image

    return Image.open(path).tobytes()


def test_its_header_tells_the_resolution_that_it_was_trained_at(
    tiny_model: Path, tmp_path: Path
) -> None:
    method = make_method(load(tiny_model), settings(tiny_model, rank=2), seed=0)
    as_if_trained(method.module)
    plain, told = tmp_path / "plain", tmp_path / "told"
    save(method, plain)
    save(method, told, title="run, 7 steps", resolution=768)
    kohya, back = tmp_path / "kohya.safetensors", tmp_path / "back"
    unet: Any = load(tiny_model).pipeline.unet.config
    to_kohya(told, kohya, unet=unet)
    from_kohya(kohya, back, unet=unet)
    headers = {}
    for path in (plain / WEIGHTS_NAME, told / WEIGHTS_NAME, kohya, back / WEIGHTS_NAME):
        with open_weights(path) as weights:
            headers[path] = dict(weights.metadata)
    before, *after = headers.values()
    assert [header["modelspec.resolution"] for header in after] == ["768x768"] * 3
    assert after[0]["modelspec.title"] == "run, 7 steps"
    assert {key: after[0][key] for key in before} == before  # what diffusers reads stays
    first, second = (load_file(folder / WEIGHTS_NAME) for folder in (plain, told))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
