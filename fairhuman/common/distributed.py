"""Ranks: which this is, and errors that all of them learn of together."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from fairhuman.errors import ConfigError, UserError

T = TypeVar("T")


def rank() -> int:
    """Return this process's rank, as the launcher set it; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def on_rank0(work: Callable[[], T]) -> T:
    """Do some work on rank 0 and return its result on every rank.

    Raises:
        UserError: what the work raised, on every rank alike, so that none waits for another.
    """
    box: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            box[0] = work()
        except UserError as error:
            box[0] = error
    dist.broadcast_object_list(box, src=0)
    if isinstance(box[0], UserError):
        raise box[0]
    result: T = box[0]
    return result


def agreed(work: Callable[[], T]) -> T:
    """Do some work on every rank; if it fails on one, raise that ConfigError on all.

    A collective.
    """
    problem, result = None, None
    try:
        result = work()
    except ConfigError as error:
        problem = str(error)
    problems: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    for found in problems:
        if found:
            raise ConfigError(found)
    return result  # type: ignore[return-value]  # None only if T is
