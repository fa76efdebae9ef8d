"""What an error says, in one line, for a message of ours."""

from __future__ import annotations


def reason(error: BaseException) -> str:
    """Return what an error says, without path and number where it is the system's."""
    strerror = getattr(error, "strerror", None)
    return str(strerror) if strerror else first_line(error)


def located(error: OSError, place: str | None = None) -> str:
    """Return what an error of the disk says, after the file that it names.

    Args:
        error: the system's.
        place: what it is about if it names no file; None: nothing that is known.
    """
    place = error.filename2 or error.filename or place
    return f"{place}: {reason(error)}" if place else reason(error)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, cut to 300 letters; its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
