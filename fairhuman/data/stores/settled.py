"""When a file has been as it is for long enough to be known by its size and time of change."""

from __future__ import annotations

import time

from fairhuman.data.stores.store import Store

RACY_NS = 10**9
"""A file that changed so shortly before it was opened is opened again at the next start: the clock
of its file system may be too coarse to tell another change."""


def settled(store: Store, name: str) -> tuple[int, int]:
    """Return a file's size in bytes and time of change: -1 where it has just changed."""
    size, changed = store.stats([name])[0].tolist()
    return size, -1 if is_fresh(changed) else changed


def is_fresh(changed: int) -> bool:
    """Return whether a time of change, in nanoseconds, is too recent to tell another from it."""
    return abs(time.time_ns() - changed) < RACY_NS
