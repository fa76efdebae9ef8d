"""Sizes and times of change of files, by which a file is known to be the same."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

RACY_NS = 10**9
"""A file that changed so shortly before it was opened is opened again at the next start: the clock
of its file system may be too coarse to tell another change."""
FAR_S = 5e-5
"""A file system that takes longer than this to describe a file is asked by many threads."""


def stats(root: Path, names: Sequence[str]) -> NDArray[np.int64]:
    """Return the sizes in bytes and times of change of files, [N, 2]; -1 where there is none."""
    told = np.empty((len(names), 2), dtype=np.int64)
    folder = os.path.join(root, "")

    def ask(places: Sequence[int]) -> None:
        for place in places:
            name = names[place]
            # os.path.join would take as long as the call itself.
            told[place] = stat(name if name.startswith(os.sep) else folder + name)

    few = range(len(names))[:200]
    began = time.perf_counter()
    ask(few)
    rest = range(len(names))[len(few) :]
    if time.perf_counter() - began < FAR_S * len(few):
        ask(rest)
    else:
        with ThreadPoolExecutor(32) as pool:
            list(pool.map(ask, (rest[start : start + 1000] for start in rest[::1000])))
    return told


def stat(path: str | Path) -> tuple[int, int]:
    """Return a file's size in bytes and time of change; -1 where there is none."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return -1, -1
    return found.st_size, found.st_mtime_ns


def settled(path: Path) -> tuple[int, int]:
    """Return a file's size in bytes and time of change: -1 where it has just changed."""
    size, changed = stat(path)
    return size, -1 if abs(time.time_ns() - changed) < RACY_NS else changed
