"""Counted memory: that of fake tensors agrees with what torch's allocator gives to real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from fairhuman.config import Config, load_config
from fairhuman.models.empty import empty_model
from fairhuman.models.encoded import Prompt
from fairhuman.models.families.sdxl.model import SDXL
from fairhuman.models.method import make_method
from fairhuman.planning.activations import count
from fairhuman.planning.fake_memory import FakeMemory
from fairhuman.training.objectives import RegionObjectives

ROOT = Path(__file__).resolve().parents[2]
SIDE, BATCH = 128, 2


def config_of(model: Path, folder: Path, method: str, checkpointing: bool) -> Config:
    tree = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
    tree["model"] = {
        "pretrained": str(model),
        "method": method,
        "gradient_checkpointing": checkpointing,
    }
    tree["data"] = {"root": "none", "resolution": SIDE}
    tree["train"] = {"output_dir": "none", "steps": 100, "batch_size": BATCH, "precision": "fp32"}
    tree["deepspeed"] = {"zero_optimization": {"stage": 2}}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return load_config(path)


# What these allocate and free while they run is their workspace, which differs by the processor
# and is not counted: oneDNN's for some instruction sets, columns of pixels for others.
KERNELS = ("convolution", "conv_depthwise", "slow_conv", "attention")


def allocated(prof: Any) -> int:
    """Return the peak of what torch's allocator gave out and took back, by its own events."""
    changes: list[tuple[int, int]] = []

    def walk(event: Any, workspace: set[Moment] | None) -> None:
        name = str(event.name)
        if workspace is None and any(kernel in name for kernel in KERNELS):
            workspace = passing(event)
        if name == "[memory]" and moment(event) not in (workspace or ()):
            changes.append((event.start_time_ns, event.extra_fields.alloc_size))
        for child in event.children:
            walk(child, workspace)

    for root in prof.profiler.kineto_results.experimental_event_tree():
        walk(root, None)
    now = peak = 0
    for _, change in sorted(changes):
        now += change
        peak = max(peak, now)
    return peak


Moment = tuple[int, int]
"""The address of a piece of memory, and when it was allocated or freed."""


def moment(event: Any) -> Moment:
    return event.extra_fields.ptr, event.start_time_ns


def passing(event: Any) -> set[Moment]:
    """Return what is allocated and freed inside an operation."""
    changes: list[Any] = []

    def walk(inner: Any) -> None:
        if str(inner.name) == "[memory]":
            changes.append(inner)
        for child in inner.children:
            walk(child)

    walk(event)
    made: dict[int, Moment] = {}
    found: set[Moment] = set()
    for change in sorted(changes, key=lambda change: change.start_time_ns):
        address = change.extra_fields.ptr
        if change.extra_fields.alloc_size > 0:
            made[address] = moment(change)
        elif address in made:
            found |= {made.pop(address), moment(change)}
    return found


def really_allocated(config: Config) -> tuple[int, int]:
    """Return the peaks of a real image's encoding, and of a real forward and backward pass."""
    sdxl = SDXL.load(config.model, torch.float32, torch.device("cpu"))
    module = make_method(sdxl, config.model, seed=0).module.train()

    def drop(parameter: Tensor) -> None:
        parameter.grad = None

    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(drop)
    cells = SIDE // 8
    noisy, target = torch.randn(2, BATCH, 4, cells, cells)
    masks = torch.rand(BATCH, 2, cells, cells)
    prompt = Prompt(torch.randn(BATCH, 77, 64), torch.randn(BATCH, 32))
    time_ids = torch.full((BATCH, 6), 128.0)
    steps = torch.tensor([10, 900])
    control = torch.rand(BATCH, 3, SIDE, SIDE) if config.model.conditioned else None
    pixels = torch.rand(1, 3, SIDE, SIDE)

    def train() -> None:
        prediction = sdxl.predict(module, noisy, steps, prompt, time_ids, control)
        area = RegionObjectives.areas(masks)
        losses = RegionObjectives(["face", "hand"], "image", {}).losses(
            prediction, target, masks, None, area
        )
        losses[0].backward(retain_graph=True)

    peaks = []
    for work in (lambda: sdxl.posterior(pixels), train):
        work()  # what the first call sets up stays
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
            work()
        peaks.append(allocated(prof))
    return peaks[0], peaks[1]


@pytest.mark.parametrize(
    ("method", "checkpointing", "close"),
    [
        ("full", False, 0.03),
        # Each checkpoint keeps the CPU's random state, 5 KB that are not counted.
        pytest.param("full", True, 0.05, marks=pytest.mark.slow),
        pytest.param("lora", False, 0.03, marks=pytest.mark.slow),
        # The CPU's convolutions lay whole control images out again, out of sight of the count.
        ("controlnet", False, 0.2),
        pytest.param("t2i_adapter", False, 0.2, marks=pytest.mark.slow),
    ],
)
def test_the_step_takes_what_is_counted(
    tiny_model: Path, tmp_path: Path, method: str, checkpointing: bool, close: float
) -> None:
    config = config_of(tiny_model, tmp_path, method, checkpointing)
    empty = empty_model(config.model, torch.float32)
    counted = count(config, empty.family, empty.method, torch.float32)
    encoding, step = really_allocated(config)
    assert counted.step == pytest.approx(step, rel=close)
    assert counted.encoding == pytest.approx(encoding, rel=0.2)
    assert counted.forward < counted.step


def test_a_storage_counts_once_and_until_its_last_tensor_is_gone() -> None:
    before = torch.zeros(1000)
    with FakeMemory([before]) as footprint:
        before.add_(1)
        whole = torch.ones(100)
        part = whole[:10].view(2, 5)
        assert footprint.live == 400
        del whole
        assert footprint.live == 400
        part += part * 2
        assert footprint.live == 400
        del part
        assert footprint.live == 0
    assert footprint.peak == 440


def test_what_autograd_saves_counts_until_the_backward_pass() -> None:
    weight = torch.ones(100, requires_grad=True)
    with FakeMemory([weight]) as footprint:
        loss = (weight.exp() * 2).sum()
        assert footprint.live == 404  # exp's result and the loss
        loss.backward()
        del loss
        assert footprint.live == 400  # the gradient
