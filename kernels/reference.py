"""The operations in plain PyTorch: the oracle of every kernel, and the path of CPU tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fairhuman.kernels.layout import same_order, storage_view

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
    """See `fairhuman.fairness.ops.region_mse`; the inputs are checked there."""
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


def gram(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    """See `fairhuman.fairness.ops.gram`; products and sums are in float64, chunk by chunk."""
    count = len(rows)
    device = rows[0][0].device
    longest = sum(tensor.numel() for tensor in rows[0])
    scratch = torch.empty(count, min(CHUNK, longest), dtype=torch.float64, device=device)
    sums = [torch.zeros(count * (count + 1) // 2, dtype=torch.float64, device=device)]

    def add_up(block: Tensor) -> None:
        pairs = [torch.dot(block[i], block[j]) for i in range(count) for j in range(i + 1)]
        sums.append(torch.stack(pairs))

    filled = 0  # small tensors share a chunk
    for pieces in _aligned_pieces(rows):
        size = pieces[0].numel()
        if filled + size > CHUNK:
            add_up(scratch[:, :filled])
            filled = 0
        for row, piece in zip(scratch, pieces, strict=True):
            row[filled : filled + size].copy_(piece)
        filled += size
    add_up(scratch[:, :filled])
    lower = torch.zeros(count, count, dtype=torch.float64, device=device)
    i, j = torch.tril_indices(count, count, device=device)
    lower[i, j] = torch.stack(sums).sum(0)
    return lower + lower.tril(-1).T


def combine(
    rows: Sequence[Sequence[Tensor]],
    weights: Tensor,
    out: Sequence[Tensor],
    scale: Tensor | None = None,
) -> Sequence[Tensor]:
    """See `fairhuman.fairness.ops.combine`; the sum is in float64 and rounded once."""
    factors = weights.double() if scale is None else weights.double() * scale.double()
    # An absent objective's row is not read: 0 * inf is NaN.
    read = [(k, factor) for k, factor in enumerate(factors.tolist()) if factor != 0.0]
    longest = max(tensor.numel() for tensor in out)
    scratch = torch.empty(min(CHUNK, longest), dtype=torch.float64, device=out[0].device)
    for *tensors, destination in zip(*rows, out, strict=True):
        *sources, target = same_order([*tensors, destination])
        views = [(storage_view(sources[k].detach()), factor) for k, factor in read]
        flat = storage_view(target)
        for start in range(0, flat.numel(), CHUNK):
            window = flat[start : start + CHUNK]
            total = scratch[: window.numel()].zero_()
            for view, factor in views:
                total.add_(view[start : start + CHUNK], alpha=factor)
            window.copy_(total)
        if target is not destination:
            destination.copy_(target)
    return out


def _aligned_pieces(rows: Sequence[Sequence[Tensor]]) -> Iterator[list[Tensor]]:
    """Yield K flat pieces of at most CHUNK elements that hold the same elements of each row."""
    for tensors in zip(*rows, strict=True):
        flat = [storage_view(tensor.detach()) for tensor in same_order(tensors)]
        for start in range(0, flat[0].numel(), CHUNK):
            yield [piece[start : start + CHUNK] for piece in flat]
