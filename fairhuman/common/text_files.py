"""Small text files that users write: read whole, in UTF-8, or refused in one line."""

from __future__ import annotations

import stat
from pathlib import Path

from fairhuman.common.paths import at_home
from fairhuman.common.quoting import shown_key
from fairhuman.errors import ConfigError

LARGEST = 2**17
"""Bytes of such a file. A config with sixteen prompts takes 5,000."""
DEEPEST = 32
"""Levels of nesting in it."""
MOST_VALUES = 10_000
"""Values in it, once aliases are expanded."""
MOST_DIGITS = 40
"""Of a whole number in it. Python itself refuses to print 4,300."""


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
        path = at_home(path)
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe could block, a device never end
            raise ConfigError(f"{name}: is a folder or a device; name a {what}")
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"{name}: there is no such {what}") from None
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read: {error.strerror}") from None
    except ConfigError:
        raise
    except ValueError as error:  # a NUL in the path; a home that does not exist
        raise ConfigError(f"{name}: names no {what}: {error}") from None
    if len(data) > LARGEST:
        raise ConfigError(f"{name}: is larger than {LARGEST // 1024} KiB; is it a {what}?")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{name}: line {line} is not UTF-8; save the file as UTF-8") from None
