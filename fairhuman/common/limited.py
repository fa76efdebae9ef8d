"""Small files that anyone may have written: read up to a size, and only as what they must be."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from fairhuman.errors import ConfigError

T = TypeVar("T")

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
"""For a dataclass's `__pydantic_config__`: no other keys, no other types, finite numbers."""
# Far above what any run has, far below what overflows.
Natural = Annotated[int, Field(ge=0, le=2**53)]
Name = Annotated[str, Field(max_length=200)]

_SHOWN = 100


def read_limited(path: Path, limit: int) -> bytes:
    """Return a plain file's bytes.

    Raises:
        ConfigError: it is not there, no plain file (a link, a pipe), cannot be read, or has more
            than `limit` bytes.
    """
    try:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"{path}: is no plain file")
        if found.st_size > limit:
            raise ConfigError(f"{path}: has {found.st_size} bytes; no such file has over {limit}")
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None


def parse_json(kind: TypeAdapter[T], raw: bytes, path: Path) -> T:
    """Return JSON as the type that it must have.

    Args:
        kind: of dataclasses with `STRICT`.
        raw: the text.
        path: where it is from, for the message.

    Raises:
        ConfigError: one line that names the first value that is wrong.
    """
    try:
        return kind.validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        value = "" if first["type"] == "missing" else f" = {shown(first['input'])}"
        where = f"{shown(place, plain=True)}{value}: " if place else ""
        message = " ".join(first["msg"].split())
        raise ConfigError(f"{path}: {where}{message}") from None


def shown(value: object, *, plain: bool = False) -> str:
    """Return a value for a message, cut to a sane length."""
    text = str(value) if plain else ascii(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
