"""CountSketch in plain PyTorch: a random projection to a few numbers that keeps inner products.

Charikar, Chen & Farach-Colton, Finding frequent items in data streams, 2002. Every element x_i is
added to bucket h(i) with a sign s(i); E<Sx, Sy> = <x, y> with a variance of at most about
2/m ||x||^2 ||y||^2, and S is linear.

Element i = b m + c lies in column c of block b. Its sign is a hash of i; its bucket is
(c + r_b) mod m with r_b a hash of b. So two elements of one block never meet, two of different
blocks meet with probability 1/m, and a block is added by moving it instead of by m scattered
additions, which on a GPU would wait for each other and be in a random order. No table: hashes are
computed from the index, the same on every device, rank and call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Elements per chunk: bounds the scratch memory to about 30 MiB.
CHUNK = 1 << 20
BITS = 64
"""Signs that one hash gives."""
# The finalizer of MurmurHash3, and Weyl's increment by the golden ratio, as signed 64-bit numbers.
MIX_1 = 0xFF51AFD7ED558CCD - 2**64
MIX_2 = 0xC4CEB9FE1A85EC53 - 2**64
GOLDEN = 0x9E3779B97F4A7C15 - 2**64


class Seeds(NamedTuple):
    """What the two hashes begin with, as signed 64-bit numbers."""

    signs: int
    shifts: int

    @classmethod
    def of(cls, seed: int) -> Seeds:
        """Return those of a sketch: apart, for signs hash words of 64, and shifts hash blocks."""
        return cls(_mixed(2 * seed), _mixed(2 * seed + 1))


def add_sketch(out: Tensor, tensors: Sequence[Tensor], starts: Sequence[int], seed: int) -> None:
    """See `fairhuman.fairness.ops.add_sketch`, where the arguments are checked."""
    seeds = Seeds.of(seed)
    for tensor, start in zip(tensors, starts, strict=True):
        _add(out, tensor.detach().reshape(-1), start, seeds)


def _add(out: Tensor, flat: Tensor, start: int, seeds: Seeds) -> None:
    size = len(out)
    rows = max(1, CHUNK // size)
    first = start // size
    last = (start + flat.numel() + size - 1) // size
    for block in range(first, last, rows):
        here = min(rows, last - block)
        low = block * size - start
        high = low + here * size
        piece = flat[max(low, 0) : high].float()
        if piece.numel() < here * size:  # a tensor need not begin or end with a block
            before = max(-low, 0)
            padded = piece.new_zeros(here * size)
            padded[before : before + piece.numel()] = piece
            piece = padded
        out += _blocks(piece.view(here, size), block, seeds)


def _blocks(values: Tensor, first: int, seeds: Seeds) -> Tensor:
    """Return the sketch of whole blocks, [n, m] float32, the first of number `first`."""
    count, size = values.shape
    device = values.device
    words = torch.arange(count * size // BITS, device=device) + first * (size // BITS)
    bits = torch.arange(8, dtype=torch.uint8, device=device)
    octets = _hash(words, seeds.signs).view(torch.uint8)
    negative = ((octets[:, None] >> bits) & 1).bool().view(count, size)
    signed = torch.where(negative, -values, values)
    blocks = torch.arange(count, device=device) + first
    # Non-negative, so that the remainder has no bias; 2^31 is far above m.
    shifts = (_hash(blocks, seeds.shifts) & 0x7FFFFFFF) % size
    columns = torch.arange(size, device=device)
    moved = signed.gather(1, (columns[None, :] - shifts[:, None]) % size)
    return moved.sum(0, dtype=torch.float64)


def _hash(values: Tensor, seed: int) -> Tensor:
    """Return 64 mixed bits of each int64, as int64; products wrap around."""
    mixed = values * GOLDEN + seed
    for factor in (MIX_1, MIX_2):
        mixed = (mixed ^ _shifted(mixed)) * factor
    return mixed ^ _shifted(mixed)


def _shifted(values: Tensor) -> Tensor:
    # The logical shift: that of int64 would draw in the sign.
    return (values >> 33) & 0x7FFFFFFF


def _mixed(seed: int) -> int:
    """Return a signed 64-bit number in which every bit depends on the seed."""
    mask = 2**64 - 1
    mixed = (seed * (GOLDEN & mask) + 0x632BE59BD9B4E019) & mask
    for factor in (MIX_1, MIX_2):
        mixed = ((mixed ^ (mixed >> 33)) * (factor & mask)) & mask
    mixed ^= mixed >> 33
    return mixed - 2**64 if mixed >= 2**63 else mixed
