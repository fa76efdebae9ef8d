"""The weighted sum of K gradients in Triton: one pass, in place where the output is a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from fairhuman.kernels.layout import same_order
from fairhuman.kernels.tables import accumulator, by_dtype, on_device, plan_walk, read_pointers


@triton.jit
def _combine_tile(  # type: ignore[no-untyped-def]
    rows,
    factors,
    start,
    lanes,  # [BLOCK]
    size,
    K: tl.constexpr,
    MASKED: tl.constexpr,
    ACC: tl.constexpr,
):
    x = ()
    for k in tl.static_range(K):
        # Predicates instead of branches: the loads of all rows are in flight together.
        # (An integer, since Triton's interpreter cannot spread a comparison of floats.)
        read = tl.broadcast_to(tl.where(factors[k] != 0, 1, 0), lanes.shape) > 0
        if MASKED:
            read = read & (lanes < size - start)
        x += (tl.load(rows[k] + start + lanes, mask=read, other=0.0).to(ACC),)  # type: ignore[assignment]
    total = factors[0] * x[0]  # type: ignore[misc]
    for k in tl.static_range(1, K):
        total += factors[k] * x[k]
    total = total.to(rows[K].dtype.element_ty)
    if MASKED:
        tl.store(rows[K] + start + lanes, total, mask=lanes < size - start)
    else:
        tl.store(rows[K] + start + lanes, total)


@triton.jit
def _combine_tiles(  # type: ignore[no-untyped-def]
    rows,
    factors,
    size,
    first,
    stop,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    lanes = tl.arange(0, BLOCK)
    whole = tl.cast(size // BLOCK, tl.int32)
    for tile in range(first, tl.minimum(stop, whole)):
        start = tl.cast(tile, tl.int64) * BLOCK
        _combine_tile(rows, factors, start, lanes, size, K, False, ACC)
    for tile in range(tl.maximum(first, whole), stop):
        start = tl.cast(tile, tl.int64) * BLOCK
        _combine_tile(rows, factors, start, lanes, size, K, True, ACC)


@triton.jit(do_not_specialize=["tiles", "chunk_tiles"])
def combine_kernel(  # type: ignore[no-untyped-def]  # noqa: D103
    rows,
    size,
    records,
    first,
    tiles,
    chunk_tiles,
    ALIGN: tl.constexpr,
    SIZE_ALIGN: tl.constexpr,
    weights,
    scale,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    chunk = tl.program_id(0)
    tile = chunk * chunk_tiles
    stop = tl.minimum(tile + chunk_tiles, tiles)
    factors = ()
    for k in tl.static_range(K):
        factor = tl.load(weights + k).to(tl.float64)
        if scale is not None:
            factor = factor * tl.load(scale).to(tl.float64)
        factors += (factor.to(ACC),)  # type: ignore[assignment]
    if records is None:
        _combine_tiles(rows, factors, tl.cast(size, tl.int64), tile, stop, K, BLOCK, ACC)
    else:
        record = records + tl.load(first + chunk) * (3 + K)
        while tile < stop:
            begin = tl.load(record).to(tl.int32)
            count = tl.multiple_of(tl.load(record + 1), SIZE_ALIGN)
            last = tl.minimum(stop, tl.load(record + 3 + K).to(tl.int32))
            here = read_pointers(record, rows, K + 1, ALIGN)
            _combine_tiles(here, factors, count, tile - begin, last - begin, K, BLOCK, ACC)
            tile = last
            record += 3 + K


def combine(
    rows: Sequence[Sequence[Tensor]],
    weights: Tensor,
    out: Sequence[Tensor],
    scale: Tensor | None = None,
) -> Sequence[Tensor]:
    """See `fairhuman.ops.combine`, where the arguments are checked; one launch.

    The sum is float32 (float64 where a row is), rounded once to the dtype of `out`. A weight
    times the scale that is 0 in that arithmetic leaves its row unread.

    Raises:
        RuntimeError: lists of several tensors while a CUDA graph is captured.
    """
    columns = [same_order(column) for column in zip(*rows, out, strict=True)]
    for group in by_dtype(columns):
        _launch(group, weights.contiguous(), scale)
    for destination, column in zip(out, columns, strict=True):
        if column[-1].data_ptr() != destination.data_ptr():
            destination.copy_(column[-1])
    return out


def _launch(columns: Sequence[tuple[Tensor, ...]], weights: Tensor, scale: Tensor | None) -> None:
    shape = _shape(columns[0])
    walk = plan_walk(columns, shape["BLOCK"])
    with on_device(columns[0][0]):
        combine_kernel[walk.grid](*walk, weights, scale, **shape)


def _shape(column: tuple[Tensor, ...]) -> dict[str, Any]:
    """Return the tile's shape: 16-byte loads, two per row and thread where registers allow."""
    count = len(column) - 1
    widest = max((tensor.dtype for tensor in column), key=lambda dtype: dtype.itemsize)
    narrowest = min(tensor.element_size() for tensor in column)
    return {
        "K": count,
        "BLOCK": 256 * (16 // narrowest) * (2 if count <= 4 else 1),
        "ACC": accumulator(widest),
        "num_warps": 8,
        "enable_fp_fusion": True,
    }
