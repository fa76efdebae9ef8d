"""`region_mse`, forward and backward, next to the formula written in torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from fairhuman import ops
from fairhuman.kernels.bench.case import Case, contenders
from fairhuman.kernels.bench.sizes import compiled

SHAPES = [(1, 4, 128, 128), (8, 4, 128, 128), (64, 4, 128, 128)]


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """Yield SDXL's latents at 1024 px with a face and a hand mask, batches of 1, 8 and 64."""
    for shape in SHAPES[: 2 if quick else None]:
        yield _case(shape, device)


def _case(shape: tuple[int, int, int, int], device: torch.device) -> Case:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    batch, channels, height, width = shape
    rng = torch.Generator(device).manual_seed(0)
    pred = torch.randn(shape, generator=rng, device=device).to(dtype)
    target = torch.randn(shape, generator=rng, device=device).to(dtype)
    masks = torch.rand(batch, 2, height, width, generator=rng, device=device)
    weight = torch.rand(batch, generator=rng, device=device) + 0.5
    upstream = torch.tensor([1.0, 2.0, 3.0], device=device)
    arguments = (upstream, pred.requires_grad_(), target, masks, weight)
    ways: dict[str, Callable[..., Tensor]] = {
        "region_mse": ops.region_mse,
        "torch, the formula": _formula,
    }
    if faster := compiled(_formula, *arguments[1:]):
        ways["torch.compile"] = faster
    exact = _gradient(
        _formula, *(tensor.detach().double().requires_grad_() for tensor in arguments)
    )
    return Case(
        op="region_mse",
        problem=f"B = {batch}, {channels}x{height}x{width}, 2 masks, "
        + str(dtype).removeprefix("torch."),
        contenders=contenders(
            {name: partial(_gradient, way, *arguments) for name, way in ways.items()},
            lambda found: _error(found, exact),
            device,
        ),
        bound=4e-3 if dtype == torch.bfloat16 else 1e-6,
        # Forward and backward each read pred, target and masks; the gradient is written.
        bytes_moved=5 * pred.numel() * pred.element_size() + 2 * masks.numel() * 4,
    )


def _gradient(f: Callable[..., Tensor], upstream: Tensor, pred: Tensor, *rest: Tensor) -> Tensor:
    losses = f(pred, *rest)
    return torch.autograd.grad(losses, pred, upstream.to(losses.dtype))[0]


def _error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def _formula(pred: Tensor, target: Tensor, masks: Tensor, weight: Tensor) -> Tensor:
    wide = torch.promote_types(pred.dtype, torch.float32)
    error = (pred.to(wide) - target.to(wide)) ** 2 * weight[:, None, None, None]
    whole = error.mean()
    parts = [(error * masks[:, k : k + 1]).mean() for k in range(masks.shape[1])]
    return torch.stack([whole, *parts])
