"""`gram` next to a matrix product and next to pairwise dot products."""

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
    ways = {
        "gram": ops.gram,
        "torch, float32 product": lambda rows: rows @ rows.T,
        "torch, pairwise dots": _pairwise,
    }
    if faster := compiled(_pairwise, rows):
        ways["torch.compile, pairwise dots"] = faster
    exact = _float64(rows)
    return Case(
        op="gram",
        problem=f"K = {len(rows)}, P = {rows.shape[1]:.3g}, float32",
        contenders=contenders(
            {name: partial(way, rows) for name, way in ways.items()},
            lambda found: _error(found, exact),
            rows.device,
        ),
        bound=1e-5,
        bytes_moved=rows.numel() * rows.element_size(),
    )


def _float64(rows: Tensor) -> Tensor:
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for chunk in rows.split(1 << 22, dim=1):
        wide = chunk.double()
        total += wide @ wide.T
    return total


def _error(found: Tensor, exact: Tensor) -> float:
    """The largest error relative to the norms of its two gradients."""
    norms = exact.diagonal().sqrt()
    return float(((found.double() - exact).abs() / torch.outer(norms, norms)).max())


def _pairwise(rows: Tensor) -> Tensor:
    K = len(rows)
    dots = {(i, j): torch.dot(rows[i], rows[j]) for i in range(K) for j in range(i + 1)}
    return torch.stack(
        [torch.stack([dots[max(i, j), min(i, j)] for j in range(K)]) for i in range(K)]
    )
