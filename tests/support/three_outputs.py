"""A small net with three losses, and their fair gradient in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fairhuman import solve_mpd


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).to(dtype)


def batch(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    x, y = torch.randn(8, 8, generator=torch.Generator().manual_seed(1)).to(dtype).split((5, 3), 1)
    return x, y


def three_losses(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> list[Tensor]:
    """The mean error of each output: their gradients share the first layer alone."""
    return list(((model(x) - y) ** 2).mean(dim=0))


def expected_gradients(max_norm: float | None = 1.0) -> list[Tensor]:
    """Float64, one process, nothing of fair_backward: gradients, A, weights, ball."""
    model = network(torch.float64)
    rows = []
    for k in range(3):
        model.zero_grad()
        three_losses(model, *batch(torch.float64))[k].backward()
        rows.append(torch.cat([p.grad.reshape(-1) for p in model.parameters()]))  # type: ignore[union-attr]
    G = torch.stack(rows)
    d = solve_mpd(G @ G.T).weights @ G
    if max_norm is not None:
        d *= max_norm / d.norm()
    return list(d.split([p.numel() for p in model.parameters()]))


def assert_gradients(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    scale = max(float(e.abs().max()) for e in expected)
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f.reshape(-1).double(), e, rtol=0, atol=2e-6 * scale)
