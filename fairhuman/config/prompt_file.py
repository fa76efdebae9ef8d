"""Files of prompts: a YAML list, JSON lines, or a text with one prompt per line."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fairhuman.common.errors import ConfigError, DataError
from fairhuman.common.json_text import JsonError, parse_lines
from fairhuman.common.quoting import shown, shown_key
from fairhuman.common.text_files import read_small
from fairhuman.common.yaml_text import item_lines, parse_yaml
from fairhuman.config.sample_prompt import SamplePrompt
from fairhuman.config.yaml_settings import bounded, explain

_YAML = (".yaml", ".yml", ".json")
_FORM = "write a prompt, or keys such as prompt, size and seed"


def read_prompts(path: Path, name: str = "--prompts") -> list[str]:
    """Return the prompts of a file alone; see `read_prompt_file`."""
    return [asked.prompt for asked in read_prompt_file(path, name)]


def read_prompt_file(path: Path, name: str = "--prompts") -> list[SamplePrompt]:
    """Return what a file asks to be drawn, each with its place.

    Args:
        path: .yaml, .yml and .json hold a list, .jsonl an object or a text per line, and others a
            prompt per line.
        name: what named the file, for messages.

    Raises:
        ConfigError: it cannot be read or has no prompt, or one cannot be drawn: a line for each
            problem, with file:line, field and fix.
    """
    suffix = path.suffix.lower()
    if suffix in _YAML:
        items = _yaml_items(path)
    elif suffix == ".jsonl":
        items = _json_items(path)
    else:
        return _text_prompts(path, name)
    prompts, problems = [], []
    for line, keys, item in items:
        if isinstance(item, JsonError):
            problems.append(f"{shown_key(path)}:{line}: {item}")
        elif not isinstance(item, str | dict):
            problems.append(f"{shown_key(path)}:{line}: {shown(item)}: {_FORM}")
        else:
            try:
                prompt = SamplePrompt.model_validate(item)
                prompts.append(prompt.at(f"{shown_key(path)}:{line}"))
            except ValidationError as error:
                lines = explain(error, SamplePrompt)
                for problem, found in zip(lines, error.errors(include_url=False), strict=True):
                    at = keys.get(str(found["loc"][0]) if found["loc"] else "", line)
                    problems.append(f"{shown_key(path)}:{at}: {problem}")
    if problems:
        raise ConfigError("\n".join(bounded(problems)))
    if not prompts:
        raise ConfigError(f"{name} {shown_key(path)}: holds no prompt; {_FORM}")
    return prompts


def _yaml_items(path: Path) -> Iterator[tuple[int, dict[str, int], Any]]:
    """Yield the line of each item, those of its keys, and the item."""
    text = read_small(path, "file of prompts")
    tree = parse_yaml(text, shown_key(path))
    if not isinstance(tree, list):
        raise ConfigError(f"{shown_key(path)}: must hold a list; begin each prompt with '- '")
    for (line, keys), item in zip(item_lines(text), tree, strict=True):
        yield line, keys, item


def _json_items(path: Path) -> Iterator[tuple[int, dict[str, int], Any]]:
    try:
        for line, item in parse_lines(path):
            yield line, {}, item
    except DataError as error:
        raise ConfigError(str(error)) from None


def _text_prompts(path: Path, name: str) -> list[SamplePrompt]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{name} {path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{name} {path}: cannot be read: is no text in UTF-8 ({error.reason})"
        ) from None
    # Not splitlines, which splits at characters that a prompt may hold.
    lines = [line.strip() for line in text.replace("\r\n", "\n").split("\n")]
    for number, line in enumerate(lines, start=1):
        if letter := no_text(line):
            raise ConfigError(f"{name} {path}, line {number}: holds {letter}; is it a text file?")
    prompts = [
        SamplePrompt.model_construct(prompt=line).at(f"{shown_key(path)}:{number}")
        for number, line in enumerate(lines, start=1)
        if line
    ]
    if not prompts:
        raise ConfigError(f"{name} {path}: holds no prompt; write one per line")
    return prompts


def no_text(text: str) -> str | None:
    """Name a character that no text has: a control character, or half of a surrogate pair."""
    for letter in text:
        if letter not in "\t\n\r" and unicodedata.category(letter) in ("Cc", "Cs"):
            return f"the character U+{ord(letter):04X}, which is no text"
    return None
