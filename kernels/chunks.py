"""How much of a walk one program of a kernel takes: it depends on the sizes alone.

So a result has the same bits on every card.
"""

from __future__ import annotations

MAX_CHUNK = 32
"""Tiles per program at most: it bounds how long a float32 sum may grow."""
MIN_PROGRAMS = 1024
"""Programs that smaller chunks should leave, so that every multiprocessor has several."""


def chunk_tiles(tiles: int) -> int:
    """Return how many of so many tiles a program takes."""
    return min(MAX_CHUNK, max(1, tiles // MIN_PROGRAMS))
