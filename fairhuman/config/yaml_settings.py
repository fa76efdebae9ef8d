"""Typed settings in YAML: read, override, validate; each problem is a line that names the fix.

What a scalar means depends on the type that its key wants: `output_dir: 2024-01-02` is a folder,
`steps: 1e3` is 1000. Nothing else is converted: a text, quoted or not, is no number, a number no
boolean, and a boolean no number.
"""

from __future__ import annotations

import difflib
import re
import types
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from fairhuman.common.errors import ConfigError
from fairhuman.common.paths import at_home
from fairhuman.common.quoting import shown, shown_key
from fairhuman.common.text_files import DEEPEST, read_small
from fairhuman.common.yaml_text import NULLS, Plain, parse_yaml, scalar, values

T = TypeVar("T", bound=BaseModel)

MOST_PROBLEMS = 20
"""Lines of a message; the rest are counted."""


def _printable(text: str) -> str:
    for character in text:
        # Cc: control characters, NUL and line ends; Cs: lone surrogates; Zl, Zp: line ends too.
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp"):
            raise ValueError(f"must not hold the character U+{ord(character):04X}; remove it")
    return text


def _not_empty(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty; give a name")
    return text


Text = Annotated[
    str, StringConstraints(max_length=10_000, strip_whitespace=True), AfterValidator(_printable)
]
"""Any text on one line, such as a prompt."""
Name = Annotated[
    str, StringConstraints(max_length=256), AfterValidator(_printable), AfterValidator(_not_empty)
]
"""A short text: of a layer, a column, a key."""
PathText = Annotated[
    str,
    StringConstraints(max_length=4096),
    AfterValidator(_printable),
    AfterValidator(_not_empty),
    AfterValidator(at_home),
]
"""A path, of which `~` is the home folder; or the hub's name of a model."""


class Section(BaseModel):
    """A section of the config: unknown keys are refused, numbers must be finite."""

    model_config = ConfigDict(
        extra="forbid",
        allow_inf_nan=False,
        frozen=True,
        strict=True,
        use_attribute_docstrings=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _typed(cls, tree: Any) -> Any:
        """Give plain scalars the meaning that their keys' types ask for."""
        if not isinstance(tree, dict):
            return values(tree)
        fields = cls.model_fields
        return {
            key: typed(value, fields[key].annotation if key in fields else None)
            for key, value in tree.items()
        }


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return what a config file holds, plain scalars as `Plain`.

    Raises:
        ConfigError: it cannot be read, or is no mapping.
    """
    tree = parse_yaml(read_small(Path(path), "config file"), shown_key(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"{shown_key(path)}: must hold keys and their values")
    return tree


def validate(model: type[T], tree: dict[str, Any], path: str | Path) -> T:
    """Return a tree as typed settings.

    Raises:
        ConfigError: every problem found, one line each.
    """
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise refusal(path, explain(error, model)) from None


def refusal(path: str | Path, problems: Sequence[str]) -> ConfigError:
    """Return the error that lists a file's problems, one line each."""
    return ConfigError("\n".join(f"{shown_key(path)}: {line}" for line in bounded(problems)))


def bounded(problems: Sequence[str]) -> list[str]:
    """Return the first problems; the rest are counted."""
    more = len(problems) - MOST_PROBLEMS
    return [*problems[:MOST_PROBLEMS], *([f"{more} more problems"] if more > 0 else [])]


def apply_override(tree: dict[str, Any], override: str, model: type[BaseModel]) -> None:
    """Set one `section.key=value` in a tree that is to be validated as a model.

    For a key that wants text, the value is what was typed, unless it is in quotes.

    Raises:
        ConfigError: it cannot be set.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{shown(override)}: an override is written section.key=value")
    path = key.split(".")
    if len(path) > DEEPEST:
        raise ConfigError(f"{shown(override)}: has more than {DEEPEST} keys in keys")
    value = _override_value(text, override, _annotation(model, path))
    node = tree
    for depth, parent in enumerate(path[:-1]):
        child = node.setdefault(parent, {})
        if child is None or (isinstance(child, Plain) and child in NULLS):
            child = node[parent] = {}
        if not isinstance(child, dict):
            parents = shown_key(".".join(path[: depth + 1]))
            raise ConfigError(f"{shown(override)}: {parents} has no keys in it")
        node = child
    node[path[-1]] = value


def _override_value(text: str, override: str, annotation: Any) -> Any:
    text = text.strip()
    if _wants_text(annotation) and text[:1] not in ("'", '"'):
        return Plain(text)
    try:
        return parse_yaml(text, shown(override))
    except ConfigError as error:
        if "is not YAML" in str(error):
            raise ConfigError(
                f"{shown(override)}: the value is not YAML; put it in quotes"
            ) from None
        raise


def _without_null(annotation: Any) -> tuple[Any, bool]:
    """Return a type without Annotated and None, and whether it had None."""
    if get_origin(annotation) is Annotated:
        return _without_null(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        (kind,) = (part for part in get_args(annotation) if part is not types.NoneType)
        return _without_null(kind)[0], True
    return annotation, False


def _wants_text(annotation: Any) -> bool:
    kind, _ = _without_null(annotation)
    return kind is str or (
        get_origin(kind) is Literal and all(isinstance(choice, str) for choice in get_args(kind))
    )


def typed(value: Any, annotation: Any) -> Any:
    """Return a value as the type wants it, if its text says so; pydantic refuses the others."""
    kind, nullable = _without_null(annotation)
    origin, inner = get_origin(kind), get_args(kind)
    section = isinstance(kind, type) and issubclass(kind, Section)
    if isinstance(value, Plain) and not (section and value not in NULLS):
        return _typed_scalar(value, kind, nullable)
    if kind is int and isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)  # JSON's 5e8
    if origin is list and isinstance(value, list):
        return [typed(item, inner[0]) for item in value]
    if origin is tuple and isinstance(value, list):
        kinds = [*inner, *[None] * len(value)]
        return tuple(typed(item, kind) for item, kind in zip(value, kinds, strict=False))
    if origin is dict and isinstance(value, dict):
        return {key: typed(item, inner[1]) for key, item in value.items()}
    if section:
        return value  # it does so itself
    return values(value)


def _typed_scalar(text: Plain, kind: Any, nullable: bool) -> Any:
    if nullable and text in NULLS:
        return None
    if _wants_text(kind):
        return None if text in ("", "null") else str(text)
    value = scalar(text)
    if kind is int and isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)  # 1e3
    return value


def explain(error: ValidationError, model: type[BaseModel], prefix: str = "") -> list[str]:
    """Return a line for each of pydantic's problems: key, value, fix.

    Args:
        error: pydantic's.
        model: what was validated.
        prefix: of the keys, such as "deepspeed.".
    """
    return [
        f"{prefix}{_explain(problem, model)}"
        for problem in error.errors(include_url=False, include_context=False)
    ]


def _explain(problem: ErrorDetails, root: type[BaseModel]) -> str:
    """Turn one of pydantic's problems into a line that names key, value and fix."""
    path = [str(part) for part in problem["loc"] if part != "[key]"] or ["config"]
    key, last = ".".join(shown_key(part) for part in path), path[-1]
    value = problem["input"]
    kind = problem["type"]
    if kind == "extra_forbidden":
        fields = list(_fields(root, path[:-1]))
        return f"{key}: unknown key{near(last, fields)}; allowed here: {', '.join(fields)}"
    if kind == "missing":
        return f"{key}: is missing and has no default"
    if "[key]" in problem["loc"]:
        return f"{key}: is no name for a key here: {_message(problem)}"
    if kind == "literal_error":
        allowed = [str(choice) for choice in _choices(_annotation(root, path))]
        return (
            f"{key} = {shown(value)}: must be one of {', '.join(allowed)}"
            f"{near(str(value), allowed)}"
        )
    return f"{key} = {shown(value)}: {_message(problem)}{_hint(value, kind)}"


def _message(problem: ErrorDetails) -> str:
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return message
    if problem["type"] == "string_unicode":
        return "must not hold half a surrogate pair; remove it"
    if message.startswith("Input should be "):
        return (
            f"must be {message.removeprefix('Input should be ').partition(' or instance of ')[0]}"
        )
    return f"{message[:1].lower()}{message[1:]}"


def _hint(value: Any, kind: str) -> str:
    """Return how a value of a wrong type is to be written, where that can be guessed."""
    if kind.startswith("bool"):
        return "; write true or false"
    if kind == "string_type" and value is None:
        return "; give a text, in quotes if it is null"
    if not isinstance(value, str) or not kind.startswith(("int", "float")):
        return ""
    if not isinstance(scalar(value), (str, bool, types.NoneType)):
        return "; remove the quotes"
    if re.fullmatch(r"[-+]?0[0-9_]*", value):
        return "; write it without the leading 0"
    if re.fullmatch(r"[-+]?0[xXoObB][0-9a-fA-F_]+", value):
        return "; write it in decimal"
    return ""


def _fields(root: type[BaseModel], path: Sequence[str]) -> dict[str, Any]:
    kind, _ = _without_null(_annotation(root, path))
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return dict(kind.model_fields)
    return {}


def _annotation(root: type[BaseModel], path: Sequence[str]) -> Any:
    """Return the type of what is at a path of keys; None: nothing, or anything."""
    annotation: Any = root
    for key in path:
        kind, _ = _without_null(annotation)
        inner = get_args(kind)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            field = kind.model_fields.get(key)
            annotation = field.annotation if field else None
        elif get_origin(kind) is dict:
            annotation = inner[1]
        elif get_origin(kind) is list:
            annotation = inner[0]
        elif get_origin(kind) is tuple and key.isdigit() and int(key) < len(inner):
            annotation = inner[int(key)]
        else:
            return None
    return annotation


def _choices(annotation: Any) -> tuple[Any, ...]:
    kind, _ = _without_null(annotation)
    return get_args(kind) if get_origin(kind) is Literal else ()


def near(word: str, allowed: Sequence[str]) -> str:
    """Return a hint at the word that was meant, if one is near."""
    if len(word) > 64:
        return ""
    match = difflib.get_close_matches(word, allowed, n=1)
    return f" (did you mean {match[0]}?)" if match else ""
