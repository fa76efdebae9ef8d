"""Typed settings in YAML: read, override, validate; each problem is a line that names the fix."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from fairhuman.errors import ConfigError

T = TypeVar("T", bound=BaseModel)


class Section(BaseModel):
    """A section of the config: unknown keys are refused, numbers must be finite."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return what a config file holds.

    Raises:
        ConfigError: it cannot be read, or is no mapping.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such config file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: must hold keys and their values")
    return tree


def validate(model: type[T], tree: dict[str, Any], path: str | Path) -> T:
    """Return a tree as typed settings.

    Raises:
        ConfigError: every problem found, one line each.
    """
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(problem, model) for problem in error.errors()]
        raise ConfigError("\n".join(f"{path}: {line}" for line in lines)) from None


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set one `section.key=value` in a tree.

    Raises:
        ConfigError: it cannot be set.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r}: an override is written section.key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"{override!r}: the value is not YAML; put it in quotes") from None
    *parents, last = key.split(".")
    node = tree
    for depth, parent in enumerate(parents):
        child = node.setdefault(parent, {})
        if child is None:
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"{override!r}: {'.'.join(parents[: depth + 1])} has no keys in it")
        node = child
    node[last] = value


def _explain(problem: ErrorDetails, root: type[BaseModel]) -> str:
    """Turn one of pydantic's problems into a line that names key, value and fix."""
    *parents, last = problem["loc"] if problem["loc"] else ("config",)
    key = ".".join(str(part) for part in problem["loc"])
    fields = _fields(root, parents)
    if problem["type"] == "extra_forbidden":
        allowed = ", ".join(fields)
        return f"{key}: unknown key{near(str(last), list(fields))}; allowed here: {allowed}"
    if problem["type"] == "missing":
        return f"{key}: is missing and has no default"
    value = problem["input"]
    if problem["type"] == "literal_error":
        allowed_values = [str(choice) for choice in _choices(fields[str(last)].annotation)]
        return (
            f"{key} = {value!r}: must be one of {', '.join(allowed_values)}"
            f"{near(str(value), allowed_values)}"
        )
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    message = message if problem["type"] == "value_error" else f"must be {message}"
    return f"{key} = {value!r}: {message}"


def _fields(root: type[BaseModel], parents: Sequence[int | str]) -> dict[str, Any]:
    model = root
    for parent in parents:
        field = model.model_fields.get(str(parent))
        annotation = field.annotation if field else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return {}
        model = annotation
    return dict(model.model_fields)


def _choices(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return tuple(choice for part in get_args(annotation) for choice in _choices(part))


def near(word: str, allowed: Sequence[str]) -> str:
    """Return a hint at the word that was meant, if one is near."""
    match = difflib.get_close_matches(word, allowed, n=1)
    return f" (did you mean {match[0]}?)" if match else ""
