"""The folder that a run writes into: checked, locked and shared by all ranks, at the start."""

from __future__ import annotations

import functools
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fairhuman.common.distributed import agreed, on_rank0, rank
from fairhuman.common.errors import ConfigError, OutputError
from fairhuman.common.files import as_output_error
from fairhuman.common.lock import FolderInUseError, FolderLock
from fairhuman.common.run_folder import CHECKPOINTS, FILES, FINAL, FOLDERS

_PROBE = ".fairhuman.probe"
_DEEPEST = f"{CHECKPOINTS}/step-00000000.partial/deepspeed/{'x' * 64}"
_PATIENCE_S = 3.0
"""For a network's file system to show a file that another machine has made."""


def claim(folder: Path, key: str, purpose: str) -> FolderLock | None:
    """Make a folder, lock it on rank 0, and see that all ranks share it; a collective.

    Args:
        folder: the same on all ranks.
        key: of the config that names it.
        purpose: what for; shown to whoever wants the folder too.

    Returns:
        The lock, on rank 0.

    Raises:
        OutputError: it cannot be written, or another process uses it. On all ranks.
        ConfigError: a rank is on another machine, whose folder of that name is another.
    """
    held: list[FolderLock] = []

    def lock() -> None:
        if os.path.lexists(folder) and not folder.is_dir():
            raise OutputError(f"{key} = {str(folder)[:200]!r}: is no folder; choose another place")
        try:
            held.append(FolderLock(folder, purpose))
        except OutputError as error:
            raise OutputError(f"{key} = {str(folder)[:200]!r}: {error}") from error
        _remove_probes(folder)

    on_rank0(lock)
    check_shared(folder, key)
    return held[0] if held else None


def _remove_probes(folder: Path) -> None:
    """Remove what a process that was killed while it looked has left in a folder that is ours."""
    for place in (folder, *(folder / name for name in FOLDERS)):
        for probe in place.glob(f"{_PROBE}.*"):
            probe.unlink(missing_ok=True)


def check_cache(folder: Path) -> None:
    """Check that all ranks share data.cache, before anything is built; a collective.

    One that cannot be written may be used if it has all that the run asks for.

    Raises:
        OutputError: there is no such folder and none can be made.
        ConfigError: a rank does not see what rank 0 wrote.
    """
    if on_rank0(functools.partial(_can_write, folder)):
        check_shared(folder, "data.cache")


def _can_write(folder: Path) -> bool:
    with as_output_error(f"data.cache = {str(folder)[:200]!r}", "cannot be made"):
        folder.mkdir(parents=True, exist_ok=True)
    return _of_folder(folder) is None


@contextmanager
def filling(folder: Path, say: Callable[[str], None] | None) -> Iterator[None]:
    """Fill data.cache alone, after whoever is filling it now; entering is a collective.

    Raises:
        OutputError: it cannot be written. On all ranks.
    """
    lock: list[FolderLock] = []
    told = None
    # All ranks ask together: one that waited alone would let the others' collective time out.
    while (holder := on_rank0(functools.partial(_try, folder, lock))) is not None:
        if say and told is None:
            say(f"data.cache: waiting, for {holder}")
        told = holder
        time.sleep(1.0)
    try:
        yield
    finally:
        for held in lock:
            held.release()


def _try(folder: Path, lock: list[FolderLock]) -> str | None:
    """Take the lock into the list, or return who has it."""
    try:
        lock.append(FolderLock(folder, "filling data.cache"))
    except FolderInUseError as error:
        return str(error).partition(";")[0]
    except OutputError as error:
        raise OutputError(
            f"data.cache: lacks what this run asks for, and {error}; make it writable, or give a "
            "copy that has all"
        ) from error
    return None


def check_shared(folder: Path, key: str) -> None:
    """Check that what rank 0 writes into a folder is there for all ranks; a collective.

    Raises:
        OutputError: rank 0 cannot write there.
        ConfigError: a rank does not see what rank 0 wrote.
    """
    probe = folder / f"{_PROBE}.{on_rank0(functools.partial(secrets.token_hex, 8))}"
    on_rank0(functools.partial(_touch, probe, key))
    try:
        agreed(functools.partial(_see, probe, key))
    finally:
        if rank() == 0:
            probe.unlink(missing_ok=True)


def check_writable(output: Path) -> None:
    """Check that nothing is in the way of what a run writes into its folder, which is there.

    Raises:
        OutputError: something is, one line for each.
    """
    problems = [problem for name in FOLDERS if (problem := _of_folder(output / name))]
    problems += [problem for name in FILES if (problem := _of_file(output / name))]
    with as_output_error(f"train.output_dir = {str(output)[:200]!r}", "its path is too long"):
        (output / _DEEPEST).exists() or os.path.lexists(output / _DEEPEST)
    if problems:
        raise OutputError("\n".join(f"train.output_dir: {problem}" for problem in problems))


def _of_folder(path: Path) -> str | None:
    if not os.path.lexists(path):
        return None
    if not path.is_dir() or (path.name == FINAL and path.is_symlink()):
        return f"{path} is in the way of a folder; move it away"
    probe = path / f"{_PROBE}.{secrets.token_hex(8)}"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        return f"{path} cannot be written: {error.strerror}"
    return None


def _of_file(path: Path) -> str | None:
    if not os.path.lexists(path):
        return None
    if not path.is_file():
        return f"{path} is in the way of a file; move it away"
    try:
        path.open("ab").close()
    except OSError as error:
        return f"{path} cannot be written: {error.strerror}"
    return None


def _touch(probe: Path, key: str) -> None:
    with as_output_error(f"{key} = {str(probe.parent)[:200]!r}"):
        probe.touch()


def _see(probe: Path, key: str) -> None:
    until = time.monotonic() + _PATIENCE_S
    while not probe.exists():
        if time.monotonic() > until:
            raise ConfigError(
                f"{key} = {str(probe.parent)[:200]!r}: rank {rank()} does not see what rank 0 "
                "writes there: each has a folder of its own; give one that all ranks share, by an "
                "absolute path"
            )
        time.sleep(0.1)
