"""Ranks: which this is, and errors that all of them learn of together."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch.distributed as dist

from fairhuman.common.error_text import first_line, located
from fairhuman.common.errors import ConfigError, DataError, OutputError, UserError

S = TypeVar("S")
T = TypeVar("T")
_KINDS = (ConfigError, DataError, OutputError, UserError)


class PeerError(Exception):
    """Another rank failed, and shows why itself; the message is one line."""


def rank() -> int:
    """Return this process's rank, as the launcher set it; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def rank_count() -> int:
    """Return the number of ranks, as the launcher set it; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Return this process's rank on its machine, as the launcher set it.

    Where the launcher did not set their number, every rank counts as alone on its machine.
    """
    return int(os.environ.get("LOCAL_RANK", "0")) if local_rank_count() > 1 else 0


def local_rank_count() -> int:
    """Return the number of ranks on this machine, as torchrun or DeepSpeed set it, or 1."""
    if rank_count() == 1:
        return 1
    told = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE")
    return int(told or "1")


def on_rank0(work: Callable[[], T]) -> T:
    """Do some work on rank 0 and return its result on every rank; a collective.

    If it fails, all ranks raise; none waits for another.

    Raises:
        UserError: what the work raised, on every rank.
        OutputError: it met an error of the disk, on every rank.
        PeerError: it raised anything else; rank 0 raises that itself.
    """
    box: list[Any] = [None]
    failed = None
    if dist.get_rank() == 0:
        result, failed = _attempt(lambda: pickle.dumps(work()))
        box[0] = _told(failed) or result
    dist.broadcast_object_list(box, src=0)
    if isinstance(box[0], _Failure):
        _fail(failed, [box[0]])
    found: T = pickle.loads(box[0])
    return found


def agreed(work: Callable[[], T]) -> T:
    """Do some work on every rank and return its result; a collective.

    If it fails on one, all raise; none waits for another. The work itself may have no collective.
    Without a process group, on this process alone.

    Raises:
        UserError: what the work raised on the first rank where it did, on every rank.
        OutputError: it met an error of the disk, likewise.
        PeerError: it raised anything else; the rank on which it did raises that itself.
    """
    if not dist.is_initialized():
        return work()
    result, failed = _attempt(work)
    failures: list[_Failure | None] = [None] * dist.get_world_size()
    dist.all_gather_object(failures, _told(failed))
    found = [failure for failure in failures if failure]
    if found:
        _fail(failed, found)
    return result  # type: ignore[return-value]  # None only if T is


def gathered(work: Callable[[], T]) -> list[T]:
    """Do some work on every rank and return all results, by rank, on every rank; a collective.

    Raises:
        UserError, OutputError, PeerError: as `agreed`.
    """
    found = agreed(work)
    if not dist.is_initialized():
        return [found]
    results: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(results, found)
    return results


def shared(work: Callable[[Sequence[S]], Sequence[T]], items: Sequence[S]) -> list[T]:
    """Do some work on a share of the items on each rank; a collective.

    Args:
        work: returns a result for each item of a share.
        items: the same on every rank.

    Returns:
        All results, in the items' order, on every rank.

    Raises:
        UserError, OutputError, PeerError: as `agreed`.
    """
    mine, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    parts = gathered(lambda: work(items[mine::ranks]))
    return [parts[place % ranks][place // ranks] for place in range(len(items))]


def peer_lost(error: BaseException) -> bool:
    """Return whether an error says that a rank left while this one waited for it."""
    return isinstance(error, RuntimeError) and (
        isinstance(error, dist.DistError) or "gloo" in str(error).lower()
    )


def timed_out(error: BaseException) -> bool:
    """Return whether an error says that this rank has waited for another as long as it may."""
    return peer_lost(error) and "timed out" in str(error).lower()


class _Failure(NamedTuple):
    """An error as other ranks are told of it; not itself, for some cannot be pickled."""

    rank: int
    kind: type[UserError] | None
    """None: a bug, whose traceback is shown where it happened."""
    message: str


def _attempt(work: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return work(), None
    except OSError as error:
        failed = OutputError(located(error, f"rank {rank()}"))
        failed.__cause__ = error
        return None, failed
    except Exception as error:  # of any kind: it is raised again once all ranks know
        return None, error


def _told(failed: Exception | None) -> _Failure | None:
    if failed is None:
        return None
    kind = next((kind for kind in _KINDS if isinstance(failed, kind)), None)
    message = str(failed) if kind else f"{type(failed).__name__}: {first_line(failed)}"
    return _Failure(dist.get_rank(), kind, message)


def _fail(own: Exception | None, failures: list[_Failure]) -> None:
    if own and not isinstance(own, UserError):
        raise own
    for failure in failures:
        if failure.kind:
            error = failure.kind(failure.message)
            error.shared = True
            raise error from own
    raise PeerError(f"rank {failures[0].rank} failed: {failures[0].message}")
