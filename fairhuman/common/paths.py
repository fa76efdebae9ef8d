"""`~` in paths: the shell expands it neither in YAML nor after `=`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TypeVar

from fairhuman.common.errors import UserError

T = TypeVar("T", str, Path)
_TEXTS = ("prompt", "negative", "prefix", "trigger")  # no paths, whatever they begin with


def at_home(path: T) -> T:
    """Return a path with a leading `~` or `~user` replaced by that home folder.

    Raises:
        ValueError: there is no such home folder.
    """
    text = os.path.expanduser(str(path))
    if text.startswith("~"):
        name = text.partition("/")[0]
        raise ValueError(f"{name!r} is no user's home folder; write ./{name} for a folder's name")
    return path if text == str(path) else type(path)(text)


def expand_arguments(args: argparse.Namespace) -> None:
    """Replace `~` in every path of a command line, as in `--out=~/x`.

    Paths are the arguments of type Path, and those of type str that begin with `~/`.

    Raises:
        UserError: a home folder does not exist, or an argument is not UTF-8: no data set and no
            config can name such a file.
    """
    for name, value in vars(args).items():
        if name in _TEXTS:
            continue
        try:
            if isinstance(value, list):
                setattr(args, name, [_expanded(item) for item in value])
            else:
                setattr(args, name, _expanded(value))
        except ValueError as error:
            raise UserError(f"--{name.replace('_', '-')} {value}: {error}") from None


def _expanded(value: object) -> object:
    if isinstance(value, str | Path):
        try:
            str(value).encode()
        except UnicodeEncodeError:
            raise ValueError("is not UTF-8; rename the file") from None
    if isinstance(value, Path):
        return at_home(value)
    return at_home(value) if isinstance(value, str) and value.startswith("~/") else value
