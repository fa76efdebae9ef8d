"""The project's one reader of YAML: small, bounded, without YAML 1.1's surprises.

Plain scalars keep the text that was typed; what they mean is decided where the type that a key
wants is known (`config/yaml_settings.py`), or by `values`, which follows YAML 1.2: `010` is no
octal number, `1:30` no sexagesimal one, `no` no boolean, `2024-01-02` no date, and `1e-5` a number.
Keys given twice, tags, and values beyond the bounds of `text_files` are refused.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

import yaml
from yaml import events

from fairhuman.common.errors import ConfigError
from fairhuman.common.quoting import cut, shown_key
from fairhuman.common.text_files import DEEPEST, MOST_DIGITS, MOST_VALUES

NULLS = ("", "~", "null", "Null", "NULL")
_BOOLEANS = {"true": True, "True": True, "TRUE": True} | {
    "false": False,
    "False": False,
    "FALSE": False,
}
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*|[1-9][0-9]{0,2}(_[0-9]{3})+)")
_FLOAT = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


class Plain(str):
    """A scalar without quotes: the text that was typed."""

    __slots__ = ()


def scalar(text: str) -> str | int | float | bool | None:
    """Return what a plain scalar means in YAML 1.2; what is no decimal number stays text."""
    if text in NULLS:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if len(text) <= MOST_DIGITS and _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text) and not text.lstrip("+-").isdigit():
        return float(text)
    if _NOT_FINITE.fullmatch(text):
        return float(text.replace(".", ""))
    return str(text)


def values(tree: Any) -> Any:
    """Return a tree with its plain scalars as the values they mean in YAML 1.2."""
    if isinstance(tree, dict):
        return {key: values(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [values(item) for item in tree]
    return scalar(tree) if isinstance(tree, Plain) else tree


def parse_yaml(text: str, source: str) -> Any:
    """Return a YAML document as dicts, lists and strings, of which plain scalars are `Plain`.

    Args:
        text: the document.
        source: the name of its file, for messages.

    Raises:
        ConfigError: it is not YAML, or is refused as the module says; with the line.
    """
    try:
        return _Builder(text).document()
    except _RefusedError as error:
        raise ConfigError(f"{source}: {error}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}: " if mark else ""
        raise ConfigError(
            f"{source}: is not YAML: {place}{_one_line(error.problem or error.context)}"
        ) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(
            f"{source}: is not YAML: line {line}: the character U+{error.character:04X} "
            "cannot be in it"
        ) from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # PyYAML's scanner calls chr() and int() on what it finds, whatever its size.
        raise ConfigError(f"{source}: is not YAML: {_one_line(error)}") from None


def item_lines(text: str) -> list[tuple[int, dict[str, int]]]:
    """Return at which line, from 1, each item of a list begins, and each key of an item.

    Args:
        text: a document that `parse_yaml` has found to be a list.
    """
    node: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    return [
        (
            item.start_mark.line + 1,
            {key.value: key.start_mark.line + 1 for key, _ in item.value}
            if isinstance(item, yaml.MappingNode)
            else {},
        )
        for item in node.value
    ]


class _RefusedError(Exception):
    """YAML, but not ours; the message says where and why."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(f"line {line + 1}: {problem}")


class _Builder:
    """Builds a tree from the parser's events, which come one at a time and are bounded here."""

    def __init__(self, text: str) -> None:
        self._events: Iterator[Any] = yaml.parse(text, Loader=yaml.SafeLoader)
        self._anchors: dict[str, tuple[Any, int]] = {}  # with the number of values inside
        self._count = 0

    def document(self) -> Any:
        next(self._events)  # the stream's start
        event = next(self._events)
        if isinstance(event, events.StreamEndEvent):
            return Plain("")
        tree = self._value(next(self._events), 0)
        next(self._events)  # the document's end
        event = next(self._events)
        if not isinstance(event, events.StreamEndEvent):
            raise _RefusedError(event.start_mark.line, "begins a second document; leave one")
        return tree

    def _value(self, event: Any, depth: int) -> Any:
        line = event.start_mark.line
        if isinstance(event, events.AliasEvent):
            return self._alias(event)
        if event.tag is not None:
            raise _RefusedError(line, f"the tag {cut(event.tag, 40)!r} is not supported; remove it")
        if depth > DEEPEST:
            raise _RefusedError(line, f"is nested more than {DEEPEST} levels deep")
        self._add(1, line)
        before = self._count
        tree: Any
        if isinstance(event, events.ScalarEvent):
            tree = str(event.value) if event.style else Plain(event.value)
        elif isinstance(event, events.SequenceStartEvent):
            tree = self._list(depth)
        else:
            tree = self._dict(depth)
        if event.anchor is not None:
            self._anchors[event.anchor] = (tree, self._count - before + 1)
        return tree

    def _alias(self, event: Any) -> Any:
        line = event.start_mark.line
        if event.anchor not in self._anchors:
            raise _RefusedError(line, f"no anchor &{cut(event.anchor, 40)} is complete before this")
        tree, size = self._anchors[event.anchor]
        self._add(size, line)
        return copy.deepcopy(tree)  # an override of one place must not change the other

    def _add(self, count: int, line: int) -> None:
        self._count += count
        if self._count > MOST_VALUES:
            raise _RefusedError(line, f"comes to more than {MOST_VALUES} values, aliases expanded")

    def _list(self, depth: int) -> list[Any]:
        tree = []
        while not isinstance(event := next(self._events), events.SequenceEndEvent):
            tree.append(self._value(event, depth + 1))
        return tree

    def _dict(self, depth: int) -> dict[str, Any]:
        tree: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        first: dict[str, int] = {}
        while not isinstance(event := next(self._events), events.MappingEndEvent):
            line = event.start_mark.line
            key = self._value(event, depth + 1)
            if not isinstance(key, str):
                raise _RefusedError(line, "a key must be a word")
            if key in first:
                raise _RefusedError(
                    line,
                    f"the key {shown_key(key)} is given twice, first in line {first[key] + 1}; "
                    "remove one",
                )
            first[str(key)] = line
            value = self._value(next(self._events), depth + 1)
            if key == "<<" and isinstance(key, Plain):
                merged = self._merged(value, line)
            else:
                tree[str(key)] = value
        return {**merged, **tree}

    def _merged(self, value: Any, line: int) -> dict[str, Any]:
        tree: dict[str, Any] = {}
        for part in value if isinstance(value, list) else [value]:
            if not isinstance(part, dict):
                raise _RefusedError(line, "<< merges keys and values, such as those of an alias")
            tree = {**part, **tree}
        return tree


def _one_line(problem: object) -> str:
    return cut(" ".join(str(problem).split()))
