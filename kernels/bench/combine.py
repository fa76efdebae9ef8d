"""`combine` in place, next to what one writes in torch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from fairhuman import ops
from fairhuman.kernels.bench.case import Case, contenders
from fairhuman.kernels.bench.sizes import compiled, gradients, problems


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """Yield K = 2, 3, 8 gradients of a LoRA's to of SDXL's size."""
    for K, count in problems(device, quick):
        yield _case(gradients(K, count, device))


def _case(rows: Tensor) -> Case:
    K, count = rows.shape
    weights = torch.linspace(0.5, 1.5, K, dtype=torch.float64, device=rows.device)
    out = torch.empty_like(rows[0])
    ways = {
        "combine": _ours,
        "torch, product": lambda rows, weights, out: torch.mv(rows.T, weights.float(), out=out),
        "torch, add_ in turn": _in_turn,
    }
    if faster := compiled(_weighted_sum, rows, weights):
        ways["torch.compile"] = lambda rows, weights, out: out.copy_(faster(rows, weights))
    exact = _exact(rows, weights)
    return Case(
        op="combine",
        problem=f"K = {K}, P = {count:.3g}, float32",
        contenders=contenders(
            {name: partial(way, rows, weights, out) for name, way in ways.items()},
            lambda found: _error(found, exact),
            rows.device,
        ),
        bound=1e-6,
        bytes_moved=(K + 1) * count * rows.element_size(),
    )


def _ours(rows: Tensor, weights: Tensor, out: Tensor) -> Tensor:
    ops.combine(rows, weights, out=out)
    return out


# Elements that are compared with float64, from the start of the rows.
_COMPARED = 1 << 22


def _exact(rows: Tensor, weights: Tensor) -> Tensor:
    return weights @ rows[:, :_COMPARED].double()


def _error(found: Tensor, exact: Tensor) -> float:
    return float((found[:_COMPARED].double() - exact).norm() / exact.norm())


def _in_turn(rows: Tensor, weights: Tensor, out: Tensor) -> Tensor:
    torch.mul(rows[0], weights[0], out=out)
    for row, weight in zip(rows[1:], weights[1:], strict=True):
        out.addcmul_(row, weight.float())
    return out


def _weighted_sum(rows: Tensor, weights: Tensor) -> Tensor:
    return (rows * weights.float()[:, None]).sum(dim=0)
