"""`solve_mpd` next to what the published code calls, and next to a solver written in torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fairhuman import _C, solve_mpd
from fairhuman.kernels.bench.case import Case, Clock, Contender
from fairhuman.kernels.bench.published import backward_error, published_weights

COUNT = 32
ALPHA = 2.0


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """Yield K = 2, 3 and 8, with gradient norms near 1 and near 1e-3."""
    for K in (2, 3, 8):
        for size in (1.0, 1e-3):
            yield _case(device, _grams(K, size), f"K = {K}, gradient norms near {size:g}")


def _case(device: torch.device, grams: Tensor, problem: str) -> Case:
    here = grams.to(device)
    if device.type == "cuda":
        ours = [
            _contender("solve_mpd, the kernel", here, _solve, "device"),
            _contender("solve_mpd, the call", here, _solve),
        ]
    else:
        ours = [
            _contender("solve_mpd", here, _solve),
            _native(here, 0.0),
            _native(here, 0.9),
        ]
    others = {"torch, Newton's method": _newton, "scipy, as published": published_weights}
    return Case(
        op="solve_mpd",
        problem=problem,
        contenders=[*ours, *(_contender(name, here, f) for name, f in others.items())],
        bound=1e-14,
        calls=COUNT,
    )


def _contender(
    name: str, grams: Tensor, solve: Callable[[Tensor], Tensor], clock: Clock = "host"
) -> Contender:
    matrices = list(grams)

    def run() -> None:
        for gram in matrices:
            solve(gram)

    error = max(backward_error(gram, solve(gram)) for gram in matrices)
    return Contender(name, run, error, clock)


def _grams(K: int, size: float) -> Tensor:
    """[COUNT, K, K] of gradients of 20 numbers, norms within a factor of 10 of `size`."""
    rng = torch.Generator().manual_seed(K)
    G = torch.randn(COUNT, K, 20, generator=rng, dtype=torch.float64)
    scale = 10.0 ** (2 * torch.rand(COUNT, K, 1, generator=rng, dtype=torch.float64) - 1)
    G = size * scale * torch.nn.functional.normalize(G, dim=2)
    return G @ G.mT


def _solve(gram: Tensor) -> Tensor:
    return solve_mpd(gram, ALPHA).weights


def _native(grams: Tensor, keep: float) -> Contender:
    """The cost of the solver itself, without its checks and tensors."""
    count, K, _ = grams.shape
    out = torch.empty(count, K + _C.build_info()["mpd_fields"], dtype=torch.float64)
    pairs = list(zip(grams, out, strict=True))

    def run() -> None:
        for gram, row in pairs:
            length = (0, math.inf, keep, 0)
            _C.solve_mpd_cpu(gram.data_ptr(), 1, K, ALPHA, 1e-7, *length, row.data_ptr())

    run()
    error = max(backward_error(gram, row[:K]) for gram, row in pairs)
    if keep:  # no fair direction: what the cosine lacks
        error = max(0.0, keep - float(out[:, K + 3].min()))
    return Contender(
        f"solve_mpd, its native call{f', keep = {keep:g}' if keep else ''}", run, error
    )


def _newton(gram: Tensor) -> Tensor:
    """Damped Newton's method on the normalised problem, every operation a torch call."""
    norm = gram.diagonal().sqrt()
    R = gram / torch.outer(norm, norm)
    c = norm ** (1 / ALPHA - 1)
    v = c ** (ALPHA / (1 + ALPHA))
    for _ in range(50):
        target = c * v ** (-1 / ALPHA)
        residual = R @ v - target
        if bool((residual.abs() <= 1e-15 * (R.abs() @ v + target)).all()):
            break
        step = -torch.linalg.solve(R + torch.diag(target / (ALPHA * v)), residual)
        ratio = float((step / v).min())
        v = v + (1.0 if ratio >= -0.9 else -0.9 / ratio) * step
    return v / norm
