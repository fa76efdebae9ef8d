"""The reader of JSON that others wrote: strict, bounded, each key once.

What Python's own reader lets pass and other readers do not is refused here: keys given twice,
NaN, numbers beyond float64, halves of characters.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from fairhuman.common.errors import ConfigError, DataError
from fairhuman.common.quoting import shown, shown_key
from fairhuman.common.text_files import DEEPEST, MOST_DIGITS

T = TypeVar("T")

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
"""For a dataclass's `__pydantic_config__`: no other keys, no other types, finite numbers."""
# Far above what any run has, far below what overflows.
Natural = Annotated[int, Field(ge=0, le=2**53)]
Name = Annotated[str, Field(max_length=200)]

# The longest number that every reader can hold: float64 ends at 309 digits.
_DIGITS = 300
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"(?P<key>\s*:)?|[{}\[\]]')


class JsonError(ValueError):
    """What is wrong with a JSON text, to be written after its place."""


def parse(text: bytes | str, *, constants: bool = False, lenient: bool = False) -> Any:
    """Return what a JSON text holds; see the module for what is refused.

    Args:
        text: bytes are UTF-8, with or without a byte order mark.
        constants: take NaN and Infinity, which are no JSON, for numbers.
        lenient: refuse keys given twice only; for a tree whose values are checked one by one where
            they are used, and which may hold others.

    Raises:
        JsonError: it is not JSON, or not of that kind.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        text = text.rstrip()  # an error at the end is to have the place where the text ends
        if lenient:
            return json.loads(text, object_pairs_hook=_object, parse_int=_any_int)
        tree = json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=_at_most(_DIGITS),
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
        place = f"column {error.colno}"
        if "\n" in error.doc:
            place = f"line {error.lineno}, {place}"
        raise JsonError(f"is not JSON: {error.msg} at {place}") from None
    except RecursionError:
        raise JsonError("is nested too deeply") from None
    return tree


def half_character(text: str) -> str | None:
    """Return the first lone surrogate of a text, escaped, which no file in UTF-8 can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return ascii(text[error.start])[1:-1]
    return None


def parse_lines(path: Path, *, lenient: bool = False) -> Iterator[tuple[int, Any]]:
    """Yield the numbers of a file's lines and what they hold, their JSON or a JsonError.

    Empty lines are left out. See `parse` for `lenient`.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, _parsed(line, lenient)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _parsed(line: bytes, lenient: bool) -> Any:
    try:
        return parse(line, lenient=lenient)
    except JsonError as error:
        return error


def parse_config(text: str, source: str) -> Any:
    """Return what a JSON text that belongs to a config holds.

    Args:
        text: the JSON.
        source: the name of its file, for messages.

    Raises:
        ConfigError: it is not JSON, gives a key twice, nests too deep, or holds a number that is
            not finite or has too many digits; with the line where it is known.
    """
    try:
        tree = json.loads(
            text, parse_constant=_constant, parse_int=_at_most(MOST_DIGITS), parse_float=_float
        )
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{source}: is not a JSON file: line {error.lineno}: {error.msg}"
        ) from None
    except JsonError as error:
        raise ConfigError(f"{source}: {error}") from None
    except RecursionError:
        raise ConfigError(f"{source}: is nested more than {DEEPEST} levels deep") from None
    _check_structure(text, source)
    return tree


def parse_as(kind: TypeAdapter[T], raw: bytes, path: Path) -> T:
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
        where = f"{shown_key(place)}{value}: " if place else ""
        message = " ".join(first["msg"].split())
        raise ConfigError(f"{path}: {where}{message}") from None


def _check_structure(text: str, source: str) -> None:
    """Refuse deep nesting and keys given twice, with their lines, in text that is JSON."""
    open_: list[dict[str, int]] = []  # of each bracket around: the lines of its keys
    line, end = 1, 0
    for token in _TOKEN.finditer(text):
        line += text.count("\n", end, token.start())
        end = token.start()
        if token[0] in "{[":
            open_.append({})
            if len(open_) > DEEPEST:
                raise ConfigError(
                    f"{source}: line {line}: is nested more than {DEEPEST} levels deep"
                )
        elif token[0] in "}]":
            open_.pop()
        elif token["key"]:
            key = json.loads(token[0].removesuffix(token["key"]))
            if key in open_[-1]:
                raise ConfigError(
                    f"{source}: line {line}: the key {shown_key(key)} is given twice, first in "
                    f"line {open_[-1][key]}; remove one"
                )
            open_[-1][key] = line


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise JsonError(f"has the key {shown(twice)} twice")
    return tree


def _at_most(most: int) -> Callable[[str], int]:
    def whole_number(digits: str) -> int:
        if len(digits) > most:
            raise JsonError(f"holds a number of {len(digits)} digits")
        return int(digits)

    return whole_number


def _any_int(digits: str) -> int:
    try:
        return int(digits)
    except ValueError:  # Python reads no whole number of more than 4,300 digits
        raise JsonError("holds a number of thousands of digits") from None


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise JsonError(f"holds a number that is too large: {shown(digits)}")
    return value


def _constant(name: str) -> float:
    raise JsonError(f"holds {name}, which is no JSON")
