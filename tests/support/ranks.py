"""Runs a function in several processes that form one process group on gloo."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from launch import context, enter_fork, free_port, rank_variables


def run_ranks(function: Callable[..., Any], ranks: int, *args: Any) -> list[Any]:
    """Call `function(*args)` on every rank and return what each rank returned."""
    method = context().get_start_method()
    with tempfile.TemporaryDirectory() as folder:
        entered = (function, ranks, free_port(), folder, args)
        mp.start_processes(_enter, entered, nprocs=ranks, start_method=method)
        return [
            torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(ranks)
        ]


def _enter(
    rank: int, function: Callable[..., Any], ranks: int, port: int, folder: str, args: Any
) -> None:
    os.environ.update(rank_variables(rank, ranks, port))
    from fairhuman.common.quiet import quiet
    from fairhuman.zero.process_group import init_distributed

    enter_fork()
    quiet()
    init_distributed()
    torch.save(function(*args), Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()
