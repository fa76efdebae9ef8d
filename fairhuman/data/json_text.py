"""JSON that others wrote, read strictly: what Python would accept and other readers would not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fairhuman.errors import DataError

# The longest number that every reader can hold: float64 ends at 309 digits.
DIGITS = 300


class JsonError(ValueError):
    """What is wrong with a JSON text, to be written after its place."""


def parse(text: bytes | str, *, constants: bool = False) -> Any:
    """Parse JSON; duplicate keys, numbers beyond float64 and lone surrogates are refused.

    Args:
        text: bytes are UTF-8, with or without a byte order mark.
        constants: take NaN and Infinity, which are no JSON, for numbers.

    Raises:
        JsonError: it is not JSON, or not of that kind.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        tree = json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=_int,
            parse_float=_float,
            parse_constant=float if constants else _constant,
        )
        if "\\ud" in text or "\\uD" in text:
            json.dumps(tree, ensure_ascii=False).encode()
    except UnicodeDecodeError:
        raise JsonError("is not UTF-8") from None
    except UnicodeEncodeError:
        raise JsonError("holds half a character (a lone \\ud800 … \\udfff)") from None
    except json.JSONDecodeError as error:
        raise JsonError(f"is not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise JsonError("is nested too deeply") from None
    return tree


def parse_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield line numbers with what the lines hold: their JSON, or a JsonError.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            yield number, parse(line)
        except JsonError as error:
            yield number, error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise JsonError(f"has the key {short(twice)} twice")
    return tree


def _int(digits: str) -> int:
    if len(digits) > DIGITS:
        raise JsonError(f"holds a number of {len(digits)} digits")
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), -float("inf")):
        raise JsonError(f"holds a number that is too large: {short(digits)}")
    return value


def _constant(name: str) -> float:
    raise JsonError(f"holds {name}, which is not JSON")


def short(value: object, limit: int = 60) -> str:
    """Return a value as it is quoted in a message, cut to a length."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
