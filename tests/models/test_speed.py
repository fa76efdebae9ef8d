"""Attention, compilation and memory layout: chosen, checked early, and the same results."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fairhuman.common.errors import ConfigError
from fairhuman.config import Model, load_config
from fairhuman.models.families.sdxl.model import SDXL
from fairhuman.models.method import make_method
from fairhuman.models.speed import check_speed, set_up

CPU = torch.device("cpu")
FP32 = torch.float32


def load(tiny_model: Path, **keys: Any) -> tuple[SDXL, nn.Module]:
    settings = Model(pretrained=str(tiny_model), **keys)
    sdxl = SDXL.load(settings, FP32, CPU)
    module = make_method(sdxl, settings, seed=0).module.train()
    set_up(module, settings)
    return sdxl, module


def gradients(sdxl: SDXL, module: nn.Module, side: int = 64) -> Tensor:
    """Return the gradients of three losses of one forward pass, [3, P], as `exact` takes them."""
    rng = torch.Generator().manual_seed(0)
    pixels = torch.rand(2, 3, side, side, generator=rng) * 2 - 1
    noise = torch.randn(2, 4, side // 8, side // 8, generator=rng)
    latents = sdxl.latents(sdxl.posterior(pixels), noise)
    prompt = sdxl.encode_captions(["a boy", None])
    time_ids = torch.tensor([[side, side, 0, 0, side, side]] * 2, dtype=FP32)
    control = (pixels + 1) / 2 if hasattr(module, "control") else None
    steps = torch.tensor([10, 900])
    pred = sdxl.predict(module, latents + noise, steps, prompt, time_ids, control)
    trained = [p for p in module.parameters() if p.requires_grad]
    losses = [pred.square().mean(), pred[:, :, :4].square().mean(), pred[:, 0].pow(4).mean()]
    rows = [torch.autograd.grad(loss, trained, retain_graph=True) for loss in losses]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])


def test_xformers_that_cannot_is_told_in_one_line_before_anything_is_loaded() -> None:
    """No build of it has a kernel for the CPU."""
    with pytest.raises(ConfigError, match=r"^model\.attention = 'xformers': .* sdpa$") as caught:
        check_speed(Model(pretrained="x", attention="xformers"), FP32, CPU)
    missing = find_spec("xformers") is None
    assert ("is not installed" if missing else "cannot compute float32") in str(caught.value)
    check_speed(Model(pretrained="x"), FP32, CPU)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_blocks_give_the_gradients_of_every_objective(
    tiny_model: Path, checkpointing: bool
) -> None:
    """Also of the second and third backward pass through one graph, and at another size."""
    plain = load(tiny_model)
    compiled = load(tiny_model, compile=True, gradient_checkpointing=checkpointing)
    for side in (64, 96):
        expected, found = gradients(*plain, side), gradients(*compiled, side)
        assert (expected.norm(dim=1) > 0).all()
        assert ((found - expected).norm(dim=1) < 1e-5 * expected.norm(dim=1)).all()


@pytest.mark.parametrize("method", ["full", "lora", "controlnet"])
def test_channels_last_reaches_the_convolutions_and_changes_nothing(
    tiny_model: Path, method: str
) -> None:
    plain, (sdxl, module) = (
        load(tiny_model, method=method, channels_last=c) for c in (False, True)
    )
    layouts = {}

    def note(name: str, inputs: tuple[Tensor, ...]) -> None:
        layouts[name] = inputs[0].is_contiguous(memory_format=torch.channels_last)

    for name, conv in module.named_modules():
        if isinstance(conv, nn.Conv2d):
            conv.register_forward_pre_hook(lambda _, inputs, name=name: note(name, inputs))
    expected, found = gradients(*plain), gradients(sdxl, module)
    assert len(layouts) > 20
    assert [name for name, last in layouts.items() if not last and "shortcut" not in name] == []
    norms = expected.norm(dim=1)
    assert ((found - expected).norm(dim=1) <= 1e-5 * norms).all()


def test_compilation_under_zero_3_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "model: {pretrained: x, compile: true}\ndata: {root: x}\n"
        "train: {output_dir: x, steps: 1}\ndeepspeed: {zero_optimization: {stage: 3}}\n"
    )
    with pytest.raises(ConfigError, match=r"model\.compile = True: does not work under ZeRO-3"):
        load_config(tmp_path / "c.yaml")
