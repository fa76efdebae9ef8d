"""CountSketch: a random projection to a few numbers that keeps inner products.

Charikar, Chen & Farach-Colton, Finding frequent items in data streams, 2002. Every element x_i is
added to bucket h(i) with a sign s(i); E<Sx, Sy> = <x, y> with a variance of at most about
2/m ||x||^2 ||y||^2, and S is linear.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Elements per chunk: bounds the scratch memory to about 30 MiB.
CHUNK = 1 << 20
_BITS = 64
# The finalizer of MurmurHash3, and Weyl's increment by the golden ratio, as signed 64-bit numbers.
_MIX = (0xFF51AFD7ED558CCD - 2**64, 0xC4CEB9FE1A85EC53 - 2**64)
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64


class CountSketch:
    """A CountSketch S of m buckets, the same on every device, rank and call.

    Element i = b m + c lies in column c of block b. Its sign is a hash of i; its bucket is
    (c + r_b) mod m with r_b a hash of b. So two elements of one block never meet, two of different
    blocks meet with probability 1/m, and a block is added by moving it instead of by m scattered
    additions, which on a GPU would wait for each other and be in a random order. No table: hashes
    are computed from the index.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        if size < _BITS or size % _BITS:
            raise ValueError(f"size must be a multiple of {_BITS}, not {size}")
        self.size = size
        # Apart: what is hashed for signs are the words of 64, for shifts the blocks.
        self._sign_seed = 2 * seed
        self._shift_seed = 2 * seed + 1

    def add(self, out: Tensor, values: Tensor, start: int) -> None:
        """Add S of the elements start, start + 1, ... to `out`.

        Args:
            out: [m] float64.
            values: any shape and float dtype, on out's device; read in its logical order.
            start: the index of its first element among all.
        """
        flat = values.reshape(-1)
        rows = max(1, CHUNK // self.size)
        first = start // self.size
        last = (start + flat.numel() + self.size - 1) // self.size
        for block in range(first, last, rows):
            here = min(rows, last - block)
            low = block * self.size - start
            high = low + here * self.size
            piece = flat[max(low, 0) : high].float()
            if piece.numel() < here * self.size:  # a tensor need not begin or end with a block
                before = max(-low, 0)
                padded = piece.new_zeros(here * self.size)
                padded[before : before + piece.numel()] = piece
                piece = padded
            out += self._blocks(piece.view(here, self.size), block)

    def _blocks(self, values: Tensor, first: int) -> Tensor:
        """Return the sketch of whole blocks, [n, m] float32, the first of number `first`."""
        count, size = values.shape
        device = values.device
        words = torch.arange(count * size // _BITS, device=device) + first * (size // _BITS)
        bits = torch.arange(8, dtype=torch.uint8, device=device)
        octets = _hash(words, self._sign_seed).view(torch.uint8)
        negative = ((octets[:, None] >> bits) & 1).bool().view(count, size)
        signed = torch.where(negative, -values, values)
        blocks = torch.arange(count, device=device) + first
        # Non-negative, so that the remainder has no bias; 2^31 is far above m.
        shifts = (_hash(blocks, self._shift_seed) & 0x7FFFFFFF) % size
        columns = torch.arange(size, device=device)
        moved = signed.gather(1, (columns[None, :] - shifts[:, None]) % size)
        return moved.sum(0, dtype=torch.float64)


def _hash(values: Tensor, seed: int) -> Tensor:
    """Return 64 mixed bits of each int64, as int64; products wrap around."""
    mixed = values * _GOLDEN + _mixed(seed)
    for factor in _MIX:
        mixed = (mixed ^ _shifted(mixed)) * factor
    return mixed ^ _shifted(mixed)


def _shifted(values: Tensor) -> Tensor:
    # The logical shift: that of int64 would draw in the sign.
    return (values >> 33) & 0x7FFFFFFF


def _mixed(seed: int) -> int:
    """Return a signed 64-bit number in which every bit depends on the seed."""
    mask = 2**64 - 1
    mixed = (seed * (_GOLDEN & mask) + 0x632BE59BD9B4E019) & mask
    for factor in _MIX:
        mixed = ((mixed ^ (mixed >> 33)) * (factor & mask)) & mask
    mixed ^= mixed >> 33
    return mixed - 2**64 if mixed >= 2**63 else mixed
