"""Runs a function in several processes that form one process group on gloo."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp


def run_ranks(function: Callable[..., Any], ranks: int, *args: Any) -> list[Any]:
    """Call `function(*args)` on every rank and return what each rank returned."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_enter, (function, ranks, free_port(), folder, args), nprocs=ranks)
        return [
            torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(ranks)
        ]


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _enter(
    rank: int, function: Callable[..., Any], ranks: int, port: int, folder: str, args: Any
) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(ranks),
        LOCAL_SIZE=str(ranks),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    from fairhuman.runtime import init_distributed, quiet

    quiet()
    init_distributed()
    torch.save(function(*args), Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()
