"""`add_sketch` of a gradient in pieces, next to what one writes in torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from fairhuman import ops
from fairhuman.kernels import countsketch
from fairhuman.kernels.bench.case import Case, Contender, clock, contenders
from fairhuman.kernels.bench.sizes import gradients, problems

SIZE = 4096
PIECE = 1_000_003
"""Elements of a piece, about what a parameter of SDXL's has; not a multiple of a block."""


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """Yield gradients of a LoRA's to of SDXL's size."""
    for count in sorted({count for _, count in problems(device, quick)}):
        yield _case(gradients(1, count, device)[0])


def _case(row: Tensor) -> Case:
    pieces = row.split(PIECE)
    starts = list(range(0, len(row), PIECE))
    ways: dict[str, Callable[..., None]] = {"add_sketch": ops.add_sketch}
    if row.is_cuda:  # elsewhere it is the same
        ways["torch, block by block"] = partial(countsketch.add_sketch, seed=0)
    exact = _sketch(partial(countsketch.add_sketch, seed=0), pieces, starts)
    return Case(
        op="add_sketch",
        problem=f"m = {SIZE}, P = {len(row):.3g}, float32",
        contenders=[
            *contenders(
                {name: partial(_sketch, way, pieces, starts) for name, way in ways.items()},
                lambda found: _error(found, exact),
                row.device,
            ),
            _scattered(row),
        ],
        bound=1e-5,
        bytes_moved=row.numel() * row.element_size(),
    )


def _sketch(way: Callable[..., None], pieces: Sequence[Tensor], starts: Sequence[int]) -> Tensor:
    out = torch.zeros(SIZE, dtype=torch.float64, device=pieces[0].device)
    way(out, pieces, starts)
    return out


def _scattered(row: Tensor) -> Contender:
    """Return a sketch by tables of buckets and signs, which take 9 bytes for an element."""
    rng = torch.Generator(row.device).manual_seed(0)
    buckets = torch.randint(SIZE, row.shape, generator=rng, device=row.device)
    signs = torch.randint(2, row.shape, generator=rng, device=row.device, dtype=torch.int8)
    signs = 2 * signs - 1

    def scatter(dtype: torch.dtype = torch.float32) -> Tensor:
        out = torch.zeros(SIZE, dtype=dtype, device=row.device)
        return out.index_add_(0, buckets, (row * signs).to(dtype))

    error = _error(scatter(), scatter(torch.float64))
    return Contender("torch, tables and index_add_", scatter, error, clock(row.device))


def _error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())
