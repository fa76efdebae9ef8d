"""Oracles of the kernels in float64 PyTorch, for the interpreter's tests and the device's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LISTS = [(5,), (0, 3), (), (30, 100), (4, 4), (1, 1, 2050)]
"""Shapes of a list's tensors: an empty one, a 0-d one, parts of a tile and more than one."""


def random_rows(
    shapes: Sequence[tuple[int, ...]],
    count: int,
    dtype: torch.dtype,
    scale: float = 1.0,
    device: str = "cpu",
) -> list[list[Tensor]]:
    rng = torch.Generator(device).manual_seed(0)

    def draw(shape: tuple[int, ...]) -> Tensor:
        return (torch.randn(shape, generator=rng, device=device) * scale).to(dtype)

    return [[draw(shape) for shape in shapes] for _ in range(count)]


def joined(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    """[K, P] float64."""
    return torch.stack([torch.cat([t.double().reshape(-1) for t in row]) for row in rows])


def assert_gram(found: Tensor, rows: Sequence[Sequence[Tensor]], rtol: float = 2e-6) -> None:
    """Check [K, K] float64 against products in float64; `rtol` is of the two norms."""
    wide = joined(rows)
    expected = wide @ wide.T
    assert found.dtype == torch.float64
    assert found.device == rows[0][0].device
    assert torch.equal(found, found.T)
    norms = expected.diagonal().sqrt()
    assert ((found - expected).abs() <= rtol * norms[:, None] * norms[None, :]).all()


def assert_combined(
    out: Sequence[Tensor], rows: Sequence[Sequence[Tensor]], factors: Tensor
) -> None:
    """Check sum_k factors_k rows_k, in float32 arithmetic and rounded once to out's dtype."""
    wide = joined(rows)
    factors = factors.to(wide)
    found = torch.cat([t.double().reshape(-1) for t in out])
    expected = factors @ wide
    rounding = (len(rows) + 1) * 2.0**-23 * (factors.abs() @ wide.abs())
    tolerance = rounding + torch.finfo(out[0].dtype).eps * expected.abs()
    assert ((found - expected).abs() <= tolerance + torch.finfo(out[0].dtype).tiny).all()


def region_mse_in_float64(
    pred: Tensor,
    target: Tensor,
    masks: Tensor,
    weight: Tensor | None,
    reduction: str,
    upstream: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the losses [K] and the gradient of <upstream, losses> in pred, both float64."""
    p = pred.detach().double().requires_grad_()
    batch, channels, height, width = pred.shape
    whole = torch.ones(batch, 1, height, width, dtype=torch.float64, device=pred.device)
    m = torch.cat([whole, masks.double()], dim=1)  # [B, K, H, W]
    s = torch.ones(batch).to(p) if weight is None else weight.double()
    sums = torch.einsum("b,bkhw,bchw->k", s, m, (p - target.double()) ** 2)
    area = whole.sum() if reduction == "image" else m.sum(dim=(0, 2, 3))
    losses = sums / (channels * torch.where(area > 0, area, 1.0))
    (grad,) = torch.autograd.grad(losses, p, upstream.double())
    return losses.detach(), grad


def sketch_by_hand(
    tensors: Sequence[Tensor], starts: Sequence[int], size: int, seed: int = 0
) -> Tensor:
    """Return the CountSketch [m] in float64, element by element, in Python's integers."""
    mask = 2**64 - 1
    golden = 0x9E3779B97F4A7C15

    def mix(value: int) -> int:
        """MurmurHash3's finalizer, with one product less and a shift of 33 throughout."""
        for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
            value = (value ^ ((value >> 33) & 0x7FFFFFFF)) * factor & mask
        return value ^ ((value >> 33) & 0x7FFFFFFF)

    def hashed(value: int, which: int) -> int:
        return mix((value * golden + mix((which * golden + 0x632BE59BD9B4E019) & mask)) & mask)

    out = [0.0] * size
    for tensor, start in zip(tensors, starts, strict=True):
        for index, value in enumerate(tensor.double().reshape(-1).tolist(), start):
            block, column = divmod(index, size)
            shift = (hashed(block, 2 * seed + 1) & 0x7FFFFFFF) % size
            sign = (hashed(index // 64, 2 * seed) >> (index % 64)) & 1
            out[(column + shift) % size] += -value if sign else value
    return torch.tensor(out, dtype=torch.float64)
