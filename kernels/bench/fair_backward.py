"""`fair_backward` next to TorchJD, where that is installed: forward pass included, three losses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from fairhuman import fair_backward, solve_mpd
from fairhuman.kernels.bench.case import Case, Contender

ALPHA = 2.0
WIDTHS = (1024, 3072, 3072, 2304)
CHANNELS = (128, 256, 512, 1024, 1152)


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """Yield a multilayer perceptron of 20 million parameters, and a convolutional net of 18."""
    for batch in (8,) if quick else (8, 256):
        inputs = torch.randn(batch, WIDTHS[0], device=device)
        yield _case(f"MLP, batch {batch}", _perceptron().to(device), inputs)
    if not quick:
        inputs = torch.randn(4, 3, 64, 64, device=device)
        yield _case("convolutions, batch 4", _convolutions().to(device), inputs)


def _perceptron() -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for width, following in pairwise(WIDTHS):
        layers += [nn.Linear(width, following), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(WIDTHS[-1], 12))


def _convolutions() -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for channels, following in zip((3, *CHANNELS), CHANNELS, strict=False):
        layers += [nn.Conv2d(channels, following, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(12))


def _case(name: str, model: nn.Sequential, inputs: Tensor) -> Case:
    model(inputs)
    parameters = list(model.parameters())
    ways: dict[str, Callable[[list[Tensor]], object]] = {
        "fair_backward": lambda losses: fair_backward(
            losses, parameters, ALPHA, normalize="none", max_norm=None
        ),
        **_torchjd(parameters),
    }
    exact = _exact(model, inputs)

    def step(way: Callable[[list[Tensor]], object]) -> None:
        for p in parameters:
            p.grad = None
        way(_losses(model, inputs))

    def error(way: Callable[[list[Tensor]], object]) -> float:
        step(way)
        return _distance(parameters, exact)

    count = sum(p.numel() for p in parameters)
    return Case(
        op="fair_backward",
        problem=f"{name}, P = {count:.3g}, K = 3",
        contenders=[
            Contender(name, partial(step, way), error(way), "host") for name, way in ways.items()
        ],
        bound=1e-4,
    )


def _losses(model: nn.Module, inputs: Tensor) -> list[Tensor]:
    out = model(inputs)
    return [out.square().mean(), (out[:, :3] - 1).square().mean() / 9, out[:, 2].exp().mean()]


def _exact(model: nn.Sequential, inputs: Tensor) -> Tensor:
    """Return the direction of unit length, [P], float64 from the Gram matrix on."""
    parameters = list(model.parameters())
    rows = []
    for loss in _losses(model, inputs):
        parts = torch.autograd.grad(loss, parameters, retain_graph=True)
        rows.append(torch.cat([part.reshape(-1) for part in parts]).double())
    gram = torch.stack([torch.stack([a @ b for b in rows]) for a in rows])
    weights = solve_mpd(gram.cpu(), ALPHA).weights.tolist()
    total = torch.zeros_like(rows[0])
    for weight, row in zip(weights, rows, strict=True):
        total.add_(row, alpha=weight)
    return total / total.norm()


def _distance(parameters: list[nn.Parameter], exact: Tensor) -> float:
    found = torch.cat([p.grad.reshape(-1) for p in parameters if p.grad is not None]).double()
    return float((found / found.norm() - exact).norm())


def _torchjd(parameters: list[nn.Parameter]) -> dict[str, Callable[[list[Tensor]], object]]:
    """Return TorchJD's four ways to take Jacobians and to combine them."""
    try:
        from torchjd.aggregation import FairGrad
        from torchjd.autojac import backward, jac_to_grad
    except ImportError:
        print("TorchJD is left out: pip install torchjd")
        return {}

    def take(losses: list[Tensor], chunk: int | None, by_gramian: bool) -> None:
        backward(losses, inputs=parameters, parallel_chunk_size=chunk)
        jac_to_grad(parameters, FairGrad(ALPHA), optimize_gramian_computation=by_gramian)

    return {
        f"TorchJD, {name}{way}": partial(take, chunk=chunk, by_gramian=by_gramian)
        for name, chunk in (("one by one", 1), ("batched", None))
        for way, by_gramian in (("", False), (", optimize_gramian_computation", True))
    }
