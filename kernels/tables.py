"""How the kernels over gradients walk: tiles, chunks of tiles, and a table of pointers for lists.

A tensor is cut into tiles, of which the last may be partial; every program takes a chunk of
consecutive tiles, which may span tensors. Nothing here depends on the device, so that a result
has the same bits on every card.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fairhuman.kernels.chunks import chunk_tiles

ALIGNMENT = 16
"""Bytes of the widest load; Triton's own granularity for divisibility too."""


class Walk(NamedTuple):
    """The arguments by which a kernel finds its elements, in the kernels' order."""

    rows: tuple[Tensor, ...]
    """M tensors: all there is, or the first record's, which give the kernel its types."""
    size: int
    """Elements of each of `rows`; not read where there is a table."""
    records: Tensor | None
    """[N + 1, 2 + M] int64: first tile, size, M pointers; the last begins with all tiles."""
    first: Tensor | None
    """[chunks] int64, the record in which a chunk begins."""
    tiles: int
    chunk_tiles: int
    align: int
    """What every pointer of the table is a multiple of, 16 or 1; Triton sees `rows` itself."""
    size_align: int
    """What every size of the table is a multiple of, 16 or 1."""

    @property
    def grid(self) -> tuple[int]:
        """One program per chunk."""
        return (-(-self.tiles // self.chunk_tiles),)


def plan_walk(columns: Sequence[tuple[Tensor, ...]], tile: int) -> Walk:
    """Return how to walk over N columns of M tensors, `tile` elements at a time.

    Each column holds the same part of every row: M non-empty tensors in the same dense order
    (`layout.same_order`), of the same dtypes from column to column.

    Raises:
        RuntimeError: several columns while a CUDA graph is captured. A table would be copied
            from the host once, and its pointers be stale at replay.
    """
    if len(columns) == 1:
        size = columns[0][0].numel()
        tiles = -(-size // tile)
        return Walk(columns[0], size, None, None, tiles, chunk_tiles(tiles), 1, 1)
    device = columns[0][0].device
    stream = stream_of(device)
    pointers = tuple(tensor.data_ptr() for column in columns for tensor in column)
    sizes = tuple(column[0].numel() for column in columns)
    records, first, tiles = _table(pointers, sizes, tile, device, stream)
    return Walk(
        columns[0],
        sizes[0],
        records,
        first,
        tiles,
        chunk_tiles(tiles),
        ALIGNMENT if all(pointer % ALIGNMENT == 0 for pointer in pointers) else 1,
        ALIGNMENT if all(size % ALIGNMENT == 0 for size in sizes) else 1,
    )


def by_dtype(columns: Iterable[Sequence[Tensor]]) -> list[list[tuple[Tensor, ...]]]:
    """Return the columns that hold anything, sorted into launches of equal dtypes."""
    groups: defaultdict[tuple[torch.dtype, ...], list[tuple[Tensor, ...]]] = defaultdict(list)
    for column in columns:
        if column[0].numel() > 0:
            groups[tuple(tensor.dtype for tensor in column)].append(tuple(column))
    return list(groups.values())


def accumulator(dtype: torch.dtype) -> Any:
    """Return Triton's dtype to compute in: float64 for float64, else float32."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def on_device(tensor: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which Triton launches on the tensor's device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


# A step's gradients mostly lie where the step before had them. The stream is part of the key,
# because the copy is ordered with the work of its own stream only.
@lru_cache(maxsize=8)
def _table(
    pointers: tuple[int, ...], sizes: tuple[int, ...], tile: int, device: torch.device, stream: int
) -> tuple[Tensor, Tensor, int]:
    """Return the records, the first record of each chunk, and the count of tiles."""
    size = torch.tensor(sizes)
    ends = torch.cumsum((size + tile - 1) // tile, 0)
    tiles = int(ends[-1])
    width = 2 + len(pointers) // len(sizes)
    records = torch.zeros(len(sizes) + 1, width, dtype=torch.int64)
    records[1:, 0] = ends
    records[:-1, 1] = size
    records[:-1, 2:] = torch.tensor(pointers).view(len(sizes), -1)
    starts = torch.arange(0, tiles, chunk_tiles(tiles))
    first = torch.searchsorted(ends, starts, right=True)
    return (*upload(records, first, device), tiles)


def stream_of(device: torch.device) -> int:
    """Return the stream on which a table is to be copied and read: 0 on a CPU.

    Raises:
        RuntimeError: a CUDA graph is captured.
    """
    if device.type != "cuda":
        return 0
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "lists of several tensors cannot be captured in a CUDA graph: their pointer table "
            "comes from the host; pass one flat tensor per gradient"
        )
    return int(torch.cuda.current_stream(device).cuda_stream)


def upload(records: Tensor, first: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return a table on the device: by one copy for which the host does not wait."""
    table = torch.cat([records.reshape(-1), first])
    if device.type != "cpu":
        table = table.pin_memory().to(device, non_blocking=True)
    cut = records.numel()
    return table[:cut].view_as(records), table[cut:]


@triton.jit
def read_pointers(record, rows, M: tl.constexpr, ALIGN: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: D103
    pointers = ()
    for m in tl.static_range(M):
        address = tl.load(record + 2 + m).to(rows[m].dtype)
        pointers += (tl.multiple_of(address, ALIGN),)  # type: ignore[assignment]
    return pointers
