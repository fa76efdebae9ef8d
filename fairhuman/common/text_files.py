"""Small files that users or strangers wrote: read up to a size, or refused in one line."""

from __future__ import annotations

import stat
from pathlib import Path

from fairhuman.common.errors import ConfigError
from fairhuman.common.paths import at_home
from fairhuman.common.quoting import shown_key

LARGEST = 2**17
"""Bytes of a text file that a user writes. A config with sixteen prompts takes 5,000."""
DEEPEST = 32
"""Levels of nesting in it."""
MOST_VALUES = 10_000
"""Values in it, once aliases are expanded."""
MOST_DIGITS = 40
"""Of a whole number in it. Python itself refuses to print 4,300."""


class NotPlainError(Exception):
    """A path that is a folder, a device or a pipe, or a link where none is followed."""


class TooLargeError(Exception):
    """A file of more bytes than it may have; it says how many."""


def read_up_to(path: Path, limit: int, *, links: bool = True) -> bytes:
    """Return a plain file's bytes.

    Args:
        path: of the file.
        limit: the most bytes that it may have.
        links: whether a link to a file will do.

    Raises:
        NotPlainError: it is something else; a pipe could block, a device never end.
        TooLargeError: it has more bytes.
        OSError: it is not there or cannot be read.
    """
    found = path.stat(follow_symlinks=links)
    if not stat.S_ISREG(found.st_mode):
        raise NotPlainError
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise TooLargeError(found.st_size)
    return content


def read_small(path: Path, what: str) -> str:
    """Return the text of a file, without a byte order mark.

    Args:
        path: of the file.
        what: it should be, such as "config file".

    Raises:
        ConfigError: it cannot be read, is no regular file, is too large, or is not UTF-8.
    """
    name = shown_key(path)
    try:
        data = read_up_to(at_home(path), LARGEST)
    except NotPlainError:
        raise ConfigError(f"{name}: is a folder or a device; name a {what}") from None
    except TooLargeError:
        raise ConfigError(
            f"{name}: is larger than {LARGEST // 1024} KiB; is it a {what}?"
        ) from None
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"{name}: there is no such {what}") from None
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read: {error.strerror}") from None
    except ValueError as error:  # a NUL in the path; a home that does not exist
        raise ConfigError(f"{name}: names no {what}: {error}") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{name}: line {line} is not UTF-8; save the file as UTF-8") from None


def read_limited(path: Path, limit: int) -> bytes:
    """Return the bytes of a file that anyone may have written.

    Raises:
        ConfigError: it is not there, no plain file (a link, a pipe), cannot be read, or has more
            than `limit` bytes.
    """
    try:
        return read_up_to(path, limit, links=False)
    except NotPlainError:
        raise ConfigError(f"{path}: is no plain file") from None
    except TooLargeError as error:
        raise ConfigError(f"{path}: has {error} bytes; no such file has over {limit}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
