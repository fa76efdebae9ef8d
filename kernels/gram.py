"""The Gram matrix of K gradients in Triton: every gradient is read once.

`gram_fwd_kernel` writes float64 partial sums, one per chunk and pair; `gram_finish_kernel` adds
them in a fixed order. There are no atomics, and the chunks depend on the sizes alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fairhuman.kernels.layout import same_order
from fairhuman.kernels.tables import accumulator, by_dtype, on_device, plan_walk, read_pointers

MAX_ROWS = 8
"""Rows whose products one program holds in registers: 8 rows have 36 pairs."""
FINISH_BLOCK = 2048


@triton.jit
def _add_tile(  # type: ignore[no-untyped-def]
    sums,
    rows,
    start,
    lanes,  # [LANES, VEC]
    size,
    K: tl.constexpr,
    MASKED: tl.constexpr,
    ACC: tl.constexpr,
):
    x = ()
    for k in tl.static_range(K):
        if MASKED:
            values = tl.load(rows[k] + start + lanes, mask=lanes < size - start, other=0.0)
        else:
            values = tl.load(rows[k] + start + lanes)
        x += (values.to(ACC),)  # type: ignore[assignment]
    # The VEC elements of a lane belong to one thread: this sum never leaves its registers.
    added = ()
    for i in tl.static_range(K):
        for j in tl.static_range(i + 1):
            total = sums[i * (i + 1) // 2 + j] + tl.sum(x[i] * x[j], axis=1)  # [LANES]
            added += (total,)  # type: ignore[assignment]
    return added


@triton.jit
def _add_tiles(  # type: ignore[no-untyped-def]
    sums,
    rows,
    size,
    first,
    stop,
    K: tl.constexpr,
    LANES: tl.constexpr,
    VEC: tl.constexpr,
    ACC: tl.constexpr,
):
    lanes = tl.arange(0, LANES)[:, None] * VEC + tl.arange(0, VEC)[None, :]  # [LANES, VEC]
    # Whole tiles apart from the last one: a mask of an odd size would forbid wide loads.
    whole = tl.cast(size // (LANES * VEC), tl.int32)
    for tile in range(first, tl.minimum(stop, whole)):
        start = tl.cast(tile, tl.int64) * (LANES * VEC)
        sums = _add_tile(sums, rows, start, lanes, size, K, False, ACC)
    for tile in range(tl.maximum(first, whole), stop):
        start = tl.cast(tile, tl.int64) * (LANES * VEC)
        sums = _add_tile(sums, rows, start, lanes, size, K, True, ACC)
    return sums


@triton.jit(do_not_specialize=["tiles", "chunk_tiles"])
def gram_fwd_kernel(  # type: ignore[no-untyped-def]  # noqa: D103
    rows,
    size,
    records,
    first,
    tiles,
    chunk_tiles,
    ALIGN: tl.constexpr,
    SIZE_ALIGN: tl.constexpr,
    partials,
    K: tl.constexpr,
    LANES: tl.constexpr,
    VEC: tl.constexpr,
    ACC: tl.constexpr,
):
    PAIRS: tl.constexpr = K * (K + 1) // 2
    chunk = tl.program_id(0)
    tile = chunk * chunk_tiles
    stop = tl.minimum(tile + chunk_tiles, tiles)
    sums = ()
    for _ in tl.static_range(PAIRS):
        sums += (tl.full([LANES], 0.0, ACC),)  # type: ignore[assignment]
    if records is None:
        sums = _add_tiles(sums, rows, tl.cast(size, tl.int64), tile, stop, K, LANES, VEC, ACC)
    else:
        record = records + tl.load(first + chunk) * (2 + K)
        while tile < stop:
            begin = tl.load(record).to(tl.int32)
            count = tl.multiple_of(tl.load(record + 1), SIZE_ALIGN)
            last = tl.minimum(stop, tl.load(record + 2 + K).to(tl.int32))
            here = read_pointers(record, rows, K, ALIGN)
            sums = _add_tiles(sums, here, count, tile - begin, last - begin, K, LANES, VEC, ACC)
            tile = last
            record += 2 + K
    chunks = tl.num_programs(0)
    for pair in tl.static_range(PAIRS):
        total = tl.sum(sums[pair].to(tl.float64), axis=0)
        tl.store(partials + tl.cast(chunks, tl.int64) * pair + chunk, total)


@triton.jit
def gram_finish_kernel(partials, chunks, gram, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: D103
    i = tl.program_id(0)
    j = tl.program_id(1)
    # Both of (i, j) and (j, i) add the same numbers in the same order: symmetric to the bit.
    high = tl.maximum(i, j)
    pair = high * (high + 1) // 2 + tl.minimum(i, j)
    lanes = tl.arange(0, BLOCK)  # [BLOCK]
    total = tl.full([BLOCK], 0.0, tl.float64)
    for start in range(0, chunks, BLOCK):
        at = start + lanes
        total += tl.load(partials + pair.to(tl.int64) * chunks + at, mask=at < chunks, other=0.0)
    tl.store(gram + i * tl.num_programs(1) + j, tl.sum(total, axis=0))


def gram(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    """See `fairhuman.ops.gram`, where the rows are checked; [K, K] float64 on their device.

    Two launches for up to 8 rows. Products are float32 and every float32 sum has at most
    MAX_CHUNK * VEC terms, whose sums are added up in float64 (float64 rows: all in float64).
    More rows are taken in groups of 4, two groups at a time, so an element is read once for
    each other group.

    Raises:
        RuntimeError: lists of several tensors while a CUDA graph is captured.
    """
    if len(rows) <= MAX_ROWS:
        return _gram(rows)
    half = MAX_ROWS // 2
    count = len(rows)
    matrix = torch.empty(count, count, dtype=torch.float64, device=rows[0][0].device)
    for a, b in combinations(range(0, count, half), 2):
        part = _gram([*rows[a : a + half], *rows[b : b + half]])
        matrix[a : a + half, a : a + half] = part[:half, :half]
        matrix[b : b + half, b : b + half] = part[half:, half:]
        matrix[a : a + half, b : b + half] = part[:half, half:]
        matrix[b : b + half, a : a + half] = part[half:, :half]
    return matrix


def _gram(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    columns = by_dtype(same_order(column) for column in zip(*rows, strict=True))
    if not columns:
        device = rows[0][0].device
        return torch.zeros(len(rows), len(rows), dtype=torch.float64, device=device)
    matrix = _launch(columns[0])
    for others in columns[1:]:
        matrix += _launch(others)
    return matrix


def _launch(columns: Sequence[tuple[Tensor, ...]]) -> Tensor:
    count = len(columns[0])
    shape = _shape(count, columns[0][0])
    walk = plan_walk(columns, shape["LANES"] * shape["VEC"])
    device = columns[0][0].device
    (chunks,) = walk.grid
    partials = torch.empty(count * (count + 1) // 2, chunks, dtype=torch.float64, device=device)
    matrix = torch.empty(count, count, dtype=torch.float64, device=device)
    with on_device(matrix):
        gram_fwd_kernel[walk.grid](*walk, partials, **shape)
        gram_finish_kernel[(count, count)](
            partials, chunks, matrix, BLOCK=FINISH_BLOCK, num_warps=8, enable_fp_fusion=True
        )
    return matrix


def _shape(count: int, tensor: Tensor) -> dict[str, Any]:
    """Return the tile's shape: 16-byte loads, two per row and thread where registers allow."""
    return {
        "K": count,
        "LANES": 256 * (2 if count <= 4 else 1),
        "VEC": 16 // tensor.element_size(),
        "ACC": accumulator(tensor.dtype),
        "num_warps": 8,
        "enable_fp_fusion": True,
    }
