"""The operations in plain PyTorch: the oracle of every kernel, and the path of CPU tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import torch
from torch import Tensor

# Elements per row that are widened to float64 at a time: K * 2 MiB of scratch, which stays in
# the cache, instead of a copy of the gradients.
CHUNK = 1 << 18


def region_mse(
    pred: Tensor,
    target: Tensor,
    masks: Tensor,
    sample_weight: Tensor | None = None,
    reduction: str = "image",
) -> Tensor:
    """See `fairhuman.ops.region_mse`; the inputs are checked there."""
    dtype = torch.promote_types(pred.dtype, torch.float32)
    residual = pred.to(dtype) - target.to(dtype)
    error = residual.square().sum(dim=1)  # [B, H, W]
    masks = masks.to(dtype)
    weighted = error
    if sample_weight is not None:
        weighted = error * sample_weight.to(dtype)[:, None, None]
    sums = torch.cat([weighted.sum()[None], (weighted[:, None] * masks).sum(dim=(0, 2, 3))])
    batch, channels, height, width = pred.shape
    whole = batch * height * width
    if reduction == "image":
        return sums / (channels * whole)
    area = torch.cat([masks.new_full((1,), whole), masks.sum(dim=(0, 2, 3))])
    # A region that is nowhere in the batch has loss 0 and gradient 0, not 0 / 0.
    return sums / (channels * torch.where(area > 0, area, torch.ones_like(area)))


def _aligned_chunks(rows: Sequence[Sequence[Tensor]]) -> Iterator[list[Tensor]]:
    """Yield K flat pieces at a time that hold the same elements of each row."""
    for tensors in zip(*rows, strict=True):
        flat = [tensor.detach().reshape(-1) for tensor in tensors]
        for start in range(0, flat[0].numel(), CHUNK):
            yield [piece[start : start + CHUNK] for piece in flat]


def gram(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    """See `fairhuman.ops.gram`; products and sums are in float64, chunk by chunk."""
    device = next(chain.from_iterable(rows)).device
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=device)
    for pieces in _aligned_chunks(rows):
        block = torch.stack([piece.double() for piece in pieces])
        total += block @ block.T
    return (total + total.T) / 2


def combine(
    rows: Sequence[Sequence[Tensor]], weights: Tensor, out: Sequence[Tensor]
) -> Sequence[Tensor]:
    """See `fairhuman.ops.combine`; `out` may be one of the rows."""
    factors = weights.tolist()
    flat_out = [tensor.view(-1) for tensor in out]
    for index, destination in enumerate(flat_out):
        flat = [row[index].detach().reshape(-1) for row in rows]
        for start in range(0, destination.numel(), CHUNK):
            window = slice(start, start + CHUNK)
            total = torch.zeros_like(destination[window], dtype=torch.float64)
            for factor, piece in zip(factors, flat, strict=True):
                if factor != 0.0:  # an absent objective's row is not read: 0 * inf is NaN
                    total.add_(piece[window].double(), alpha=factor)
            destination[window].copy_(total)
    return out
