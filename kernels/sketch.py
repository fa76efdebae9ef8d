"""CountSketch of a list of tensors in Triton: two launches, every element read once.

`sketch_kernel` gathers: a program owns a range of buckets and goes through a chunk of items, an
item being what one tensor has of one block, whose elements come to the buckets in a run that is
shifted by the block's hash. Its float32 sums have at most MAX_CHUNK terms; `sketch_finish_kernel`
adds them up in float64, in a fixed order. There are no atomics.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from fairhuman.kernels.chunks import chunk_tiles
from fairhuman.kernels.countsketch import GOLDEN, MIX_1, MIX_2, Seeds
from fairhuman.kernels.tables import on_device, stream_of, upload

MAX_TILE = 2048
"""Buckets that one program owns."""
FINISH_ROWS, FINISH_BUCKETS = 32, 128

_GOLDEN, _MIX_1, _MIX_2 = tl.constexpr(GOLDEN), tl.constexpr(MIX_1), tl.constexpr(MIX_2)


@triton.jit
def _hash(values, seed):  # type: ignore[no-untyped-def]
    mixed = values * _GOLDEN + seed
    # The logical shift: that of int64 would draw in the sign.
    mixed = (mixed ^ ((mixed >> 33) & 0x7FFFFFFF)) * _MIX_1
    mixed = (mixed ^ ((mixed >> 33) & 0x7FFFFFFF)) * _MIX_2
    return mixed ^ ((mixed >> 33) & 0x7FFFFFFF)


@triton.jit(do_not_specialize=["items", "chunk_items", "sign_seed", "shift_seed"])
def sketch_kernel(  # type: ignore[no-untyped-def]  # noqa: D103
    like,
    records,
    first,
    items,
    chunk_items,
    sign_seed: tl.int64,
    shift_seed: tl.int64,
    partials,
    size,
    TILE: tl.constexpr,
):
    chunk = tl.program_id(0)
    item = chunk * chunk_items
    stop = tl.minimum(item + chunk_items, items)
    buckets = tl.program_id(1) * TILE + tl.arange(0, TILE)  # [TILE]
    total = tl.full([TILE], 0.0, tl.float32)
    record = records + tl.load(first + chunk) * 4
    while item < stop:
        begin = tl.load(record).to(tl.int32)
        start = tl.load(record + 1)
        count = tl.load(record + 2)
        values = tl.load(record + 3).to(like.dtype)
        last = tl.minimum(stop, tl.load(record + 4).to(tl.int32))
        for number in range(item, last):
            block = start // size + (number - begin)
            shift = (_hash(block, shift_seed) & 0x7FFFFFFF) % size
            column = buckets - shift
            index = block * size + tl.where(column < 0, column + size, column)  # among all
            place = index - start
            here = (buckets < size) & (place >= 0) & (place < count)
            x = tl.load(values + place, mask=here, other=0.0).to(tl.float32)
            negative = (_hash(index // 64, sign_seed) >> (index % 64)) & 1
            total += tl.where(negative != 0, -x, x)
        item = last
        record += 4
    tl.store(partials + tl.cast(chunk, tl.int64) * size + buckets, total, mask=buckets < size)


@triton.jit(do_not_specialize=["chunks"])
def sketch_finish_kernel(  # type: ignore[no-untyped-def]  # noqa: D103
    partials, chunks, out, size, ROWS: tl.constexpr, BUCKETS: tl.constexpr
):
    rows = tl.arange(0, ROWS)[:, None]
    buckets = tl.program_id(0) * BUCKETS + tl.arange(0, BUCKETS)
    inside = buckets < size
    total = tl.full([ROWS, BUCKETS], 0.0, tl.float64)
    for start in range(0, chunks, ROWS):
        at = tl.cast(start + rows, tl.int64) * size + buckets[None, :]
        here = (start + rows < chunks) & inside[None, :]
        total += tl.load(partials + at, mask=here, other=0.0).to(tl.float64)
    before = tl.load(out + buckets, mask=inside, other=0.0)
    tl.store(out + buckets, before + tl.sum(total, axis=0), mask=inside)


def add_sketch(out: Tensor, tensors: Sequence[Tensor], starts: Sequence[int], seed: int) -> None:
    """See `fairhuman.fairness.ops.add_sketch`, where the arguments are checked.

    Two launches for all tensors of one dtype, and a copy of each that is not contiguous.

    Raises:
        RuntimeError: while a CUDA graph is captured.
    """
    groups: defaultdict[torch.dtype, list[tuple[Tensor, int]]] = defaultdict(list)
    for tensor, start in zip(tensors, starts, strict=True):
        if tensor.numel() > 0:
            groups[tensor.dtype].append((tensor.detach().contiguous(), start))
    for parts in groups.values():
        _launch(out, parts, Seeds.of(seed))


def _launch(out: Tensor, parts: Sequence[tuple[Tensor, int]], seeds: Seeds) -> None:
    flat, starts = zip(*parts, strict=True)
    size = len(out)
    pointers = tuple(tensor.data_ptr() for tensor in flat)
    sizes = tuple(tensor.numel() for tensor in flat)
    stream = stream_of(out.device)
    records, first, items = _table(pointers, starts, sizes, size, out.device, stream)
    tile = min(MAX_TILE, triton.next_power_of_2(size))
    chunks = len(first)
    partials = torch.empty(chunks, size, dtype=torch.float32, device=out.device)
    with on_device(out):
        sketch_kernel[(chunks, triton.cdiv(size, tile))](
            flat[0], records, first, items, chunk_tiles(items), *seeds, partials, size,
            TILE=tile, num_warps=8,
        )  # fmt: skip
        sketch_finish_kernel[(triton.cdiv(size, FINISH_BUCKETS),)](
            partials, chunks, out, size, ROWS=FINISH_ROWS, BUCKETS=FINISH_BUCKETS, num_warps=4
        )


# As `tables._table`: gradients mostly lie where those of the step before lay.
@lru_cache(maxsize=256)
def _table(
    pointers: tuple[int, ...],
    starts: tuple[int, ...],
    sizes: tuple[int, ...],
    size: int,
    device: torch.device,
    stream: int,
) -> tuple[Tensor, Tensor, int]:
    """Return the records, the first record of each chunk, and the count of items.

    Records are [N + 1, 4] int64: first item, index of the first element, elements, pointer; the
    last begins with all items.
    """
    start, count = torch.tensor(starts), torch.tensor(sizes)
    blocks = (start + count - 1) // size - start // size + 1
    ends = torch.cumsum(blocks, 0)
    items = int(ends[-1])
    records = torch.zeros(len(sizes) + 1, 4, dtype=torch.int64)
    records[1:, 0] = ends
    records[:-1, 1:] = torch.stack([start, count, torch.tensor(pointers)], dim=1)
    firsts = torch.searchsorted(ends, torch.arange(0, items, chunk_tiles(items)), right=True)
    return (*upload(records, firsts, device), items)
