"""Digests as keys of a table, sorted in one array: 20 bytes each, which forked workers share."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

BYTES = 20
"""Of a digest: BLAKE2b."""
KEY = np.dtype(f"S{BYTES}")
"""NumPy compares these with zeros at the end as the bytes that they are, but drops such zeros from
what it gives out as `bytes`."""

Keys = NDArray[np.bytes_]


def as_keys(digests: Iterable[bytes]) -> Keys:
    """Return digests of 20 bytes as an array, [N] of `KEY`."""
    return np.frombuffer(b"".join(digests), KEY)


def places_of(keys: Keys, known: Keys) -> NDArray[np.int64]:
    """Return where keys, [N], are among the sorted ones, [M]: [N], -1 where they are not."""
    if not len(known):
        return np.full(len(keys), -1)
    places = np.searchsorted(known, keys)
    places[places == len(known)] = 0
    places[known[places] != keys] = -1
    return places
