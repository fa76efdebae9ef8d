"""A lock on a folder that says who holds it, and that ends with the process that does."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

import psutil

from fairhuman.common.errors import OutputError
from fairhuman.common.files import as_output_error

LOCK = ".fairhuman.lock"
_HELD_BY_ANOTHER = (errno.EACCES, errno.EAGAIN)
_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class FolderInUseError(OutputError):
    """Another process holds the lock."""


class FolderLock:
    """Keeps a folder to one process, on all machines that share it, until released.

    A POSIX record lock on FOLDER/.fairhuman.lock, a file that stays. The system drops the lock
    when the process ends, however it ends. Forked children (a DataLoader's workers) do not inherit
    it, so they cannot keep it beyond the process's death, as they would a `flock`. In exchange the
    process itself loses it when it opens and closes that file again: nothing here does.

    Where the file system has no locks, the holder's record in the file decides: a process on this
    host that runs no more does not count, and one on another host must be removed by hand.

    Args:
        folder: made if it is not there.
        purpose: what holds it, such as "training"; shown to whoever comes second.

    Raises:
        FolderInUseError: another process holds it (one line: who, since when, and what to do).
        OutputError: the folder cannot be written.
    """

    _held: ClassVar[set[tuple[int, int]]] = set()
    """Those of this process, by device and inode: record locks do not keep it from itself."""

    def __init__(self, folder: Path | str, purpose: str) -> None:
        self.folder = Path(folder)
        self.path = self.folder / LOCK
        self._key: tuple[int, int] | None = None
        self._descriptor: int | None = None
        with as_output_error(self.folder):
            self._made = not self.folder.exists()
            self.folder.mkdir(parents=True, exist_ok=True)
            found = os.stat(self.folder)
        key = (found.st_dev, found.st_ino)
        if key in self._held:
            raise self._refusal({"host": socket.gethostname(), "pid": os.getpid()})
        with as_output_error(self.path):
            # Not blocking: a FIFO of that name would.
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
            self._descriptor = os.open(self.path, flags, 0o666)
        try:
            self._lock()
            with as_output_error(self.path):
                self._record(_me() | {"purpose": purpose})
        except BaseException:
            self._close()
            raise
        self._key = key
        self._held.add(key)

    def release(self) -> None:
        """Give the folder free; a second call does nothing.

        A folder that was made for the lock, and holds nothing else, is removed.
        """
        if self._descriptor is not None and self._key is not None:
            self._held.discard(self._key)
            with suppress(OSError):  # of a lost mount: the lock itself goes with the descriptor
                self._record(None)
                if self._made and os.listdir(self.folder) == [LOCK]:
                    self.path.unlink()
                    self.folder.rmdir()
            self._close()

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def _lock(self) -> None:
        assert self._descriptor is not None
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = self._holder()
            if error.errno in _HELD_BY_ANOTHER:
                raise self._refusal(holder) from None
            if error.errno not in _NO_LOCKS_HERE:
                raise OutputError(f"{self.path}: cannot be locked: {error.strerror}") from error
            if holder and _may_run(holder):
                raise self._refusal(holder, f"; if it runs no more, remove {self.path}") from None
        if not self._is_there():
            raise self._refusal({})

    def _is_there(self) -> bool:
        """Return whether the lock is on the folder's own file, which its last holder may remove."""
        assert self._descriptor is not None
        with as_output_error(self.path):
            mine = os.fstat(self._descriptor)
        try:
            return os.path.samestat(mine, os.stat(self.path))
        except FileNotFoundError:
            return False

    def _record(self, holder: dict[str, Any] | None) -> None:
        """Write who holds it. The old record is cut off last, so that there always is one."""
        assert self._descriptor is not None
        content = json.dumps(holder).encode() + b"\n" if holder else b""
        os.pwrite(self._descriptor, content, 0)
        os.ftruncate(self._descriptor, len(content))

    def _holder(self) -> dict[str, Any]:
        """Return what the file says of its holder; empty if it says nothing that can be read."""
        assert self._descriptor is not None
        try:
            holder = json.loads(os.pread(self._descriptor, 4096, 0).partition(b"\n")[0])
        except (OSError, ValueError):
            return {}
        return holder if isinstance(holder, dict) else {}

    def _refusal(self, holder: dict[str, Any], more: str = "") -> FolderInUseError:
        who = "another process"
        if holder:
            who = f"process {holder.get('pid')} on {holder.get('host')}"
            who += f" ({holder['purpose']})" if "purpose" in holder else ""
            who += f" since {holder['since']}" if "since" in holder else ""
        return FolderInUseError(
            f"{self.folder}: is in use by {who[:300]}; wait until it ends, stop it, or choose "
            f"another folder{more}"
        )

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _me() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }


def _may_run(holder: dict[str, Any]) -> bool:
    """Return whether a holder may be running: not if it was on this host and is gone."""
    if holder.get("host") != socket.gethostname():
        return True
    try:
        started = psutil.Process(int(holder["pid"])).create_time()
        return abs(started - float(holder["started"])) < 2  # else its number was given again
    except psutil.NoSuchProcess:
        return False
    except (psutil.Error, KeyError, TypeError, ValueError):
        return True
