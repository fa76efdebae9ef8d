"""The K region losses and their gradient in Triton: one launch forward, one backward."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from fairhuman.kernels.tables import accumulator, on_device

BLOCK = 512
"""Pixels per program, with all their channels."""
CHANNEL_GROUP = 4
"""Channels whose residuals the backward kernel holds in registers."""


@triton.jit
def _pixels(start, H, W, stride_h, stride_w, FLAT: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the offsets of pixels [start, start + BLOCK) in one channel, [BLOCK]."""
    lanes = tl.arange(0, BLOCK)
    if FLAT:
        return start * stride_w + lanes * stride_w
    pixel = start + lanes
    return (pixel // W) * stride_h + (pixel % W) * stride_w


@triton.jit
def region_mse_fwd_kernel(  # type: ignore[no-untyped-def]  # noqa: D103
    pred,
    pred_b,
    pred_c,
    pred_h,
    pred_w,
    target,
    target_b,
    target_c,
    target_h,
    target_w,
    masks,
    masks_b,
    masks_r,
    masks_h,
    masks_w,
    weight,
    weight_b,
    H,
    W,
    tiles,
    partials,
    counter,
    losses,
    inverse,
    C: tl.constexpr,
    R: tl.constexpr,
    REGION: tl.constexpr,
    FLAT: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    b = (program // tiles).to(tl.int64)
    start = (program % tiles).to(tl.int64) * BLOCK
    inside = start + tl.arange(0, BLOCK) < tl.cast(H, tl.int64) * W  # [BLOCK]
    p = pred + b * pred_b + _pixels(start, H, W, pred_h, pred_w, FLAT, BLOCK)
    t = target + b * target_b + _pixels(start, H, W, target_h, target_w, FLAT, BLOCK)
    error = tl.full([BLOCK], 0.0, ACC)
    for _ in range(C):
        y = tl.load(t, mask=inside, other=0.0).to(ACC)
        residual = tl.load(p, mask=inside, other=0.0).to(ACC) - y
        error += residual * residual
        p += pred_c
        t += target_c
    if weight is not None:
        error *= tl.load(weight + b * weight_b).to(ACC)
    # Block sums, [K + R, programs]: the K losses', then the R areas'.
    mine = partials + program
    tl.store(mine, tl.sum(error, axis=0))
    m = masks + b * masks_b + _pixels(start, H, W, masks_h, masks_w, FLAT, BLOCK)
    for r in tl.static_range(R):
        mask = tl.load(m + r * tl.cast(masks_r, tl.int64), mask=inside, other=0.0).to(ACC)
        tl.store(mine + (1 + r) * programs, tl.sum(error * mask, axis=0))
        if REGION:
            tl.store(mine + (1 + R + r) * programs, tl.sum(mask, axis=0))
    # The last program to get here adds all block sums, in the order of the blocks whoever it is.
    # The barrier puts every thread's stores before the count, which releases and acquires.
    tl.debug_barrier()
    if tl.atomic_add(counter, 1, sem="acq_rel") == programs - 1:
        whole = tl.cast(programs // tiles, tl.float64) * H * W
        for k in tl.static_range(1 + R):
            area = whole
            if REGION and k > 0:
                area = _sum_blocks(partials + (R + k) * programs, programs, BLOCK)
                # A region that is nowhere in the batch has loss 0 and gradient 0, not 0 / 0.
                area = tl.where(area > 0, area, 1.0)
            share = 1.0 / (area * C)
            total = _sum_blocks(partials + k * programs, programs, BLOCK)
            tl.store(losses + k, (total * share).to(ACC))
            tl.store(inverse + k, share.to(ACC))
        tl.store(counter, 0)


@triton.jit
def _sum_blocks(partials, programs, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    lanes = tl.arange(0, BLOCK)
    total = tl.full([BLOCK], 0.0, tl.float64)
    for start in range(0, programs, BLOCK):
        at = start + lanes
        # From the second cache level: other multiprocessors wrote this.
        block = tl.load(partials + at, mask=at < programs, other=0.0, cache_modifier=".cg")
        total += block.to(tl.float64)
    return tl.sum(total, axis=0)


@triton.jit
def region_mse_bwd_kernel(  # type: ignore[no-untyped-def]  # noqa: D103
    pred,
    pred_b,
    pred_c,
    pred_h,
    pred_w,
    target,
    target_b,
    target_c,
    target_h,
    target_w,
    masks,
    masks_b,
    masks_r,
    masks_h,
    masks_w,
    weight,
    weight_b,
    H,
    W,
    tiles,
    inverse,
    upstream,
    upstream_k,
    grad,
    grad_b,
    grad_c,
    grad_h,
    grad_w,
    C: tl.constexpr,
    R: tl.constexpr,
    GROUP: tl.constexpr,
    FLAT: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    program = tl.program_id(0)
    b = (program // tiles).to(tl.int64)
    start = (program % tiles).to(tl.int64) * BLOCK
    inside = start + tl.arange(0, BLOCK) < tl.cast(H, tl.int64) * W  # [BLOCK]
    p = pred + b * pred_b + _pixels(start, H, W, pred_h, pred_w, FLAT, BLOCK)
    t = target + b * target_b + _pixels(start, H, W, target_h, target_w, FLAT, BLOCK)
    g = grad + b * grad_b + _pixels(start, H, W, grad_h, grad_w, FLAT, BLOCK)
    m = masks + b * masks_b + _pixels(start, H, W, masks_h, masks_w, FLAT, BLOCK)
    # d/dpred = 2 s_b r sum_k u_k m_k / (what loss k is divided by)
    factor = tl.full([BLOCK], 0.0, ACC) + tl.load(upstream).to(ACC) * tl.load(inverse)
    for r in tl.static_range(R):
        mask = tl.load(m + r * tl.cast(masks_r, tl.int64), mask=inside, other=0.0).to(ACC)
        u = tl.load(upstream + (1 + r) * upstream_k).to(ACC) * tl.load(inverse + 1 + r)
        factor += u * mask
    factor *= 2.0
    if weight is not None:
        factor *= tl.load(weight + b * weight_b).to(ACC)
    # Several channels are loaded before the first is stored: no load may be moved over a store.
    for first in range(0, C, GROUP):
        residuals = ()
        for c in tl.static_range(GROUP):
            here = inside & (tl.full([BLOCK], C, tl.int32) > first + c)
            y = tl.load(t + c * tl.cast(target_c, tl.int64), mask=here, other=0.0).to(ACC)
            x = tl.load(p + c * tl.cast(pred_c, tl.int64), mask=here, other=0.0).to(ACC)
            residuals += (x - y,)  # type: ignore[assignment]
        for c in tl.static_range(GROUP):
            here = inside & (tl.full([BLOCK], C, tl.int32) > first + c)
            value = (factor * residuals[c]).to(grad.dtype.element_ty)
            tl.store(g + c * tl.cast(grad_c, tl.int64), value, mask=here)
        p += GROUP * tl.cast(pred_c, tl.int64)
        t += GROUP * tl.cast(target_c, tl.int64)
        g += GROUP * tl.cast(grad_c, tl.int64)


class _RegionMSE(torch.autograd.Function):
    """Differentiable in `pred` once, by any upstream [K]."""

    @staticmethod
    def forward(
        ctx: Any,
        pred: Tensor,
        target: Tensor,
        masks: Tensor,
        weight: Tensor | None,
        reduction: str,
    ) -> Tensor:
        regions = masks.shape[1]
        dtype = torch.promote_types(pred.dtype, torch.float32)
        programs, geometry, meta = _plan(pred, target, masks, weight, [])
        sums = 1 + regions + (regions if reduction == "region" else 0)
        partials = torch.empty(sums, programs, dtype=dtype, device=pred.device)
        losses = torch.empty(1 + regions, dtype=dtype, device=pred.device)
        inverse = torch.empty_like(losses)
        with on_device(pred):
            region_mse_fwd_kernel[(programs,)](
                *geometry,
                partials,
                _counter(pred.device),
                losses,
                inverse,
                REGION=reduction == "region",
                **meta,
            )
        ctx.save_for_backward(pred, target, masks, weight, inverse)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        pred, target, masks, weight, inverse = ctx.saved_tensors
        grad = torch.empty_like(pred)
        programs, geometry, meta = _plan(pred, target, masks, weight, [grad])
        with on_device(pred):
            region_mse_bwd_kernel[(programs,)](
                *geometry,
                inverse,
                upstream,
                upstream.stride(0),
                grad,
                *grad.stride(),
                GROUP=CHANNEL_GROUP,
                **meta,
            )
        return grad, None, None, None, None


def region_mse(
    pred: Tensor,
    target: Tensor,
    masks: Tensor,
    sample_weight: Tensor | None = None,
    reduction: str = "image",
) -> Tensor:
    """See `fairhuman.ops.region_mse`, where the inputs are checked; one launch, one backward.

    Residuals, products and the sums of 512 pixels are float32, their sum float64; all is float64
    where `pred` is. The same bits on every call.
    """
    result: Tensor = _RegionMSE.apply(pred, target, masks, sample_weight, reduction)
    return result


def _plan(
    pred: Tensor, target: Tensor, masks: Tensor, weight: Tensor | None, others: list[Tensor]
) -> tuple[int, tuple[Any, ...], dict[str, Any]]:
    """Return the count of programs, the arguments both kernels begin with, and the shape's."""
    batch, channels, height, width = pred.shape
    # An image whose rows follow each other is one long row: no division per pixel, wide loads.
    flat = all(
        tensor.stride(2) == width * tensor.stride(3)
        for tensor in (pred, target, masks, *others)
        if tensor.numel() > 0
    )
    tiles = -(-height * width // BLOCK)
    geometry = (
        pred,
        *pred.stride(),
        target,
        *target.stride(),
        masks,
        *masks.stride(),
        weight,
        0 if weight is None else weight.stride(0),
        height,
        width,
        tiles,
    )
    meta = {
        "C": channels,
        "R": masks.shape[1],
        "FLAT": flat,
        "BLOCK": BLOCK,
        "ACC": accumulator(pred.dtype),
        "num_warps": 4,
        "enable_fp_fusion": True,
    }
    return batch * tiles, geometry, meta


# The kernel leaves its counter at 0. One per stream, since kernels of a stream follow each other;
# within a graph one of the graph's own, since it may be replayed on any stream.
_counters: dict[tuple[torch.device, int], Tensor] = {}


def _counter(device: torch.device) -> Tensor:
    stream = 0
    if device.type == "cuda":
        if torch.cuda.is_current_stream_capturing():
            return torch.zeros(1, dtype=torch.int32, device=device)
        stream = torch.cuda.current_stream(device).cuda_stream
    key = (device, stream)
    if key not in _counters:
        _counters[key] = torch.zeros(1, dtype=torch.int32, device=device)
    return _counters[key]
