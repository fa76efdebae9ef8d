"""mkdocs hook: makes the reference pages of config, study and command line from the code."""

from __future__ import annotations

import argparse
import json
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from fairhuman.config.json_schema import config_schema
from fairhuman.evaluation.study.plan import study_schema

PROGRAMS = (
    "fairhuman.cli",
    "fairhuman.train",
    "fairhuman.kernels.bench.__main__",
    "fairhuman.planning.step_benchmark",
    "fairhuman.planning.mode_comparison",
    "fairhuman.curation.annotation.quality",
)
"""Modules with a `make_parser()`."""

CONFIG_INTRODUCTION = """\
# Config reference

A training config is a YAML file with these sections; `section.key=value` on the command line
overrides a key. [Configs](../config.md) explains how values are read, and how editors check them.
"""

STUDY_INTRODUCTION = """\
# Study reference

The keys of a study's config, for `fairhuman study --config FILE`; see
[Study](../study.md#your-own-data) for an example.
"""

CLI_INTRODUCTION = """\
# Command-line reference

`python -m fairhuman` is the same as `fairhuman`. The exit code is 0 after success and 2 after an
error in what was given, such as a config that cannot run; the message names the key or the file,
and the fix. `fairhuman doctor` and `fairhuman inspect --strict` exit with 1 if they find something
wrong. A training run exits with 3 after [`train.max_skips`](config.md#train.max_skips) skipped
steps in a row.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to those of the folder."""
    pages: dict[str, Callable[[], str]] = {
        "reference/config.md": lambda: schema_page(CONFIG_INTRODUCTION, config_schema()),
        "reference/study.md": lambda: schema_page(STUDY_INTRODUCTION, study_schema()),
        "reference/cli.md": cli_page,
    }
    for path, make in pages.items():
        files.append(File.generated(config, path, content=make()))
    return files


# Pages of a JSON schema: a heading for each key, so that search and links find it.


def schema_page(introduction: str, schema: Mapping[str, Any]) -> str:
    """Return a page with every key of a schema: type, default, allowed values, meaning."""
    keys = {key for key, _, _ in _keys(schema, schema, "")}
    parts = [introduction]
    for key, node, required in _keys(schema, schema, ""):
        meaning = _linked(node["description"], keys - {key})
        if "properties" in node:
            parts.append(f"{'###' if '.' in key else '##'} `{key}` {{ #{key} }}\n\n{meaning}\n")
            continue
        default = "required" if required else f"`{_value(node.get('default'))}`"
        parts.append(
            f"### `{key}` {{ #{key} }}\n\n{meaning}\n\n"
            '<div class="facts" markdown>\n\n'
            f"| Type | Default | Allowed values |\n| --- | --- | --- |\n"
            f"| {_type(node)} | {default} | {_allowed(node)} |\n\n</div>\n"
        )
    return "\n".join(parts)


def _keys(
    node: Mapping[str, Any], root: Mapping[str, Any], prefix: str
) -> Iterator[tuple[str, Mapping[str, Any], bool]]:
    """Yield every key below a schema with its own schema, and whether it must be given."""
    for name, entry in node["properties"].items():
        found, key = _resolved(entry, root), f"{prefix}{name}"
        yield key, found, name in node.get("required", ())
        if "properties" in found:
            yield from _keys(found, root, f"{key}.")
        elif "properties" in (items := _resolved(_values_of(found), root)):
            yield from _keys(items, root, f"{key}.NAME.")
        elif "properties" in (items := _resolved(_entries_of(found), root)):
            yield from _keys(items, root, f"{key}.")


def _resolved(entry: Any, root: Mapping[str, Any]) -> dict[str, Any]:
    """Follow a reference, also that of an entry which may be null."""
    if not isinstance(entry, dict):
        return {}
    options = [option for option in entry.get("anyOf", ()) if "$ref" in option]
    reference = entry.get("$ref") or (options[0]["$ref"] if options else None)
    if reference is None:
        return entry
    return {**root["$defs"][reference.rpartition("/")[2]], **entry}


def _values_of(node: Mapping[str, Any]) -> Any:
    """Return the schema of a mapping's values."""
    return next(iter(node.get("patternProperties", {}).values()), node.get("additionalProperties"))


def _entries_of(node: Mapping[str, Any]) -> Any:
    """Return the schema of a list's entries that are mappings."""
    for option in _options(node):
        items = option.get("items")
        if isinstance(items, dict) and ("anyOf" in items or "$ref" in items):
            return items
    return None


def _options(node: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(node.get("anyOf", [node]))


def _type(node: Mapping[str, Any]) -> str:
    names = {
        "boolean": "boolean",
        "integer": "integer",
        "null": "null",
        "number": "number",
        "string": "text",
    }
    found = []
    for option in _options(node):
        kind = option.get("type")
        if kind == "array" and isinstance(option["items"], list):
            found.append(f"list of {len(option['items'])} {names[option['items'][0]['type']]}s")
        elif kind == "array" and "anyOf" in option["items"]:
            found.append("list of text or mappings")
        elif kind == "array" and "$ref" in option["items"]:
            found.append("list of mappings")
        elif kind == "array":
            found.append(f"list of {names[option['items']['type']]}s".replace("texts", "text"))
        elif kind == "object":
            inner = _values_of(option)
            values = names.get(inner.get("type", ""), "") if isinstance(inner, dict) else ""
            found.append(f"mapping of names to {values}s" if values else "mapping")
        else:
            found.append(names[str(kind)])
    return " or ".join(found).replace("to texts", "to text")


def _allowed(node: Mapping[str, Any]) -> str:
    found = []
    for option in _options(node):
        if "enum" in option:
            found.append(", ".join(f"`{_value(choice)}`" for choice in option["enum"]))
        elif option.get("type") == "boolean":
            found.append("`true`, `false`")
        elif option.get("type") == "null":
            found.append("`null`")
        elif limits := _limits(option):
            found.append(limits)
    return "; ".join(found) or "any"


def _limits(option: Mapping[str, Any]) -> str:
    """Return the bounds of a number, a text's length, or of a list and what is in it."""
    bounds = {
        "minimum": "at least {}",
        "exclusiveMinimum": "above {}",
        "maximum": "at most {}",
        "exclusiveMaximum": "below {}",
        "multipleOf": "a multiple of {}",
        "minItems": "{} or more entries",
        "maxItems": "up to {} entries",
        "minProperties": "{} or more entries",
        "maxProperties": "up to {} entries",
        "maxLength": "up to {} characters",
    }
    if option.get("minItems") == option.get("maxItems"):
        bounds["minItems"] = "{} entries"
        del bounds["maxItems"]
    found = [text.format(_number(option[key])) for key, text in bounds.items() if key in option]
    inner = option.get("items", _values_of(option))
    for entry in [inner[0]] if isinstance(inner, list) else [inner] if inner else []:
        if isinstance(entry, dict) and (limits := _limits(entry)):
            found.append(f"each {limits}")
    return ", ".join(found)


def _number(value: float) -> str:
    """Write the large bounds as powers."""
    for base in (2, 10):
        exponent = len(bin(int(value))) - 3 if base == 2 else len(str(int(value))) - 1
        if value == base**exponent and value >= 10**5:
            return f"{base}^{exponent}"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _linked(text: str, keys: set[str]) -> str:
    """Link the keys that a meaning names."""

    def link(match: re.Match[str]) -> str:
        return f"[`{match[0]}`](#{match[0]})" if match[0] in keys else match[0]

    return re.sub(r"(?<![\w./`])[a-z_]+(?:\.[a-z_]+)+(?![\w/`])", link, text)


# The page of the command line: a heading for each command, a definition for each argument.


def cli_page() -> str:
    """Return a page with every command and argument of every program."""
    parts = [CLI_INTRODUCTION]
    for module in PROGRAMS:
        parser: argparse.ArgumentParser = import_module(module).make_parser()
        parts += _command(parser, parser.description or "", 2)
    return "\n".join(parts)


def _command(parser: argparse.ArgumentParser, meaning: str, level: int) -> Iterator[str]:
    subparsers = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    anchor = re.sub(r"[^a-z0-9]+", "-", parser.prog.lower()).strip("-")
    yield f"{'#' * level} `{parser.prog}` {{ #{anchor} }}\n\n{_sentence(meaning)}\n"
    yield f"```text\n{_usage(parser)}\n```\n"
    arguments = [a for a in parser._actions if _shown(a)]
    yield "\n".join(f"`{_spelled(a)}`\n:   {_meaning(a)}\n" for a in arguments)
    for action in subparsers:
        helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
        for name, command in action.choices.items():
            yield from _command(command, helps[name], min(level + 1, 4))


def _usage(parser: argparse.ArgumentParser) -> str:
    """Return the usage in lines that a phone shows whole, none of which ends inside brackets."""
    text = " ".join(parser.format_usage().split()).removeprefix("usage: ").replace(" [-h]", "")
    kept = re.sub(r"\[[^]]*\]", lambda match: match[0].replace(" ", "\xa0"), text)
    lines = textwrap.wrap(kept, 44, subsequent_indent="    ", break_on_hyphens=False)
    return "\n".join(lines).replace("\xa0", " ")


def _shown(action: argparse.Action) -> bool:
    hidden = (argparse._HelpAction, argparse._SubParsersAction)
    return action.help != argparse.SUPPRESS and not isinstance(action, hidden)


def _spelled(action: argparse.Action) -> str:
    names = ", ".join(action.option_strings)
    if action.nargs == 0:
        return names
    choices = "|".join(map(str, action.choices)) if action.choices else None
    value = str(action.metavar or choices or action.dest.upper())
    return f"{names} {value}".strip()


def _meaning(action: argparse.Action) -> str:
    default = action.default
    text = _sentence(action.help or "")
    if action.required and action.option_strings:
        text += " Required."
    elif action.nargs != 0 and default not in (None, "", []) and "default:" not in text.lower():
        text += f" Default: `{default}`."
    return text


def _sentence(text: str) -> str:
    """Write argparse's lower-case phrase as a sentence."""
    text = " ".join(text.split())
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('.', '…')) else '.'}"
