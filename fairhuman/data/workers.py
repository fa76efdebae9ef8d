"""Errors of a DataLoader's workers, as if they had happened here."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import TypeVar

from fairhuman.common.error_text import first_line
from fairhuman.common.errors import DataError, OutputError, UserError

T = TypeVar("T")
_SHARED_MEMORY = ("shared memory", "torch_shm", "</torch_", "Bus error", "file_descriptor")


def from_workers(loader: Iterable[T]) -> Generator[T, None, None]:
    """Yield what a DataLoader does.

    A worker's error arrives with its whole traceback in its message, and a full /dev/shm, through
    which workers pass their tensors, in several disguises.

    Raises:
        UserError: a worker raised one; its message alone.
        DataError: a file cannot be read any more.
        OutputError: /dev/shm is full, or the process may open no more files.
    """
    try:
        yield from loader
    except UserError as error:
        raise type(error)(_last(error)) from None if _is_wrapped(error) else error
    except OSError as error:
        if not _is_wrapped(error):
            raise
        raise DataError(f"data: a sample cannot be read any more: {_last(error)}") from None
    except RuntimeError as error:
        if "ancdata" in str(error):  # the system has dropped descriptors that a worker passed
            raise OutputError(
                "data.workers: this process may open too few files to receive what its workers "
                "read; raise the limit (ulimit -n), or set data.workers=0"
            ) from error
        if not any(words in str(error) for words in _SHARED_MEMORY):
            raise
        raise OutputError(
            "/dev/shm: the workers that read the data have no room in it "
            f"({_last(error) if _is_wrapped(error) else first_line(error)}); make it larger "
            "(docker run --shm-size), or set data.workers=0"
        ) from error


def _is_wrapped(error: Exception) -> bool:
    return str(error).startswith("Caught ") and "Original Traceback" in str(error)


def _last(error: Exception) -> str:
    """Return the message that a worker's error had."""
    if not _is_wrapped(error):
        return str(error)
    return str(error).strip().splitlines()[-1].partition(": ")[2][:500]
