"""Ranks that end let the one that knows why speak first.

A launcher kills all ranks as soon as one has ended: where a silent one ends first, nobody learns
what went wrong. So those that are silent wait, on the store by which the process group meets.
"""

from __future__ import annotations

import os
import time
from datetime import timedelta

import torch.distributed as dist

from fairhuman.common.distributed import rank, rank_count

PATIENCE_S = 30.0
"""How long a silent rank waits for another to speak."""
_GOODBYE_S = 5.0
"""How long rank 0, with which the store ends, waits for the others to have heard."""
_SAID, _LEAVING = "fairhuman/said", "fairhuman/leaving"


def spoken() -> None:
    """Let the other ranks end: this one has said why."""
    store = _store(timedelta(seconds=_GOODBYE_S))
    if store is None:
        return
    try:
        store.set(_SAID, "")
        _leave(store)
    except RuntimeError:  # the store has ended with rank 0
        return


def heard() -> bool:
    """Wait for another rank to say why all end; return whether one did."""
    store = _store(timedelta(seconds=PATIENCE_S))
    if store is None:
        return False
    try:
        store.wait([_SAID], timedelta(seconds=PATIENCE_S))
        _leave(store)
    except RuntimeError:
        return False
    return True


def _leave(store: dist.TCPStore) -> None:
    store.add(_LEAVING, 1)
    end = time.monotonic() + _GOODBYE_S
    while rank() == 0 and store.add(_LEAVING, 0) < rank_count() and time.monotonic() < end:
        time.sleep(0.01)


def _store(patience: timedelta) -> dist.TCPStore | None:
    """Return the store of the process group, or make it if there is no group yet."""
    host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if rank_count() == 1 or host is None or port is None:
        return None
    by_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    hosts = rank() == 0 and not dist.is_initialized() and not by_torchrun
    try:
        return dist.TCPStore(
            host,
            int(port),
            is_master=hosts,
            timeout=patience,
            wait_for_workers=False,
        )
    except (RuntimeError, ValueError):
        return None
