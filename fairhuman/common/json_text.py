"""The reader of JSON that users write: strict, bounded, keys once."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from fairhuman.common.quoting import cut, shown_key
from fairhuman.common.text_files import DEEPEST, MOST_DIGITS
from fairhuman.errors import ConfigError

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"(?P<key>\s*:)?|[{}\[\]]')


def parse_json(text: str, source: str) -> Any:
    """Return what a JSON text holds.

    Args:
        text: the JSON.
        source: the name of its file, for messages.

    Raises:
        ConfigError: it is not JSON, gives a key twice, nests too deep, or holds a number that is
            not finite or has too many digits; with the line where it is known.
    """
    try:
        tree = json.loads(
            text, parse_constant=_not_finite, parse_int=_whole_number, parse_float=_number
        )
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{source}: is not a JSON file: line {error.lineno}: {error.msg}"
        ) from None
    except ValueError as error:
        raise ConfigError(f"{source}: is not a JSON file: {error}") from None
    except RecursionError:
        raise ConfigError(f"{source}: is nested more than {DEEPEST} levels deep") from None
    _check_structure(text, source)
    return tree


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


def _not_finite(word: str) -> Any:
    raise ValueError(f"{word} is no JSON")


def _whole_number(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"{cut(digits, 20)} has too many digits")
    return int(digits)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{cut(text, 20)} is too large a number")
    return value
