"""The command that prints a shell's completion script; shtab writes it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fairhuman.common.errors import UserError
from fairhuman.common.extras import install_line


def add(commands: Any, make_parser: Callable[[], argparse.ArgumentParser]) -> None:
    """Add it to the subparsers of `fairhuman`, whose parser `make_parser` returns."""
    completion = commands.add_parser("completion", help="print a shell completion script")
    completion.add_argument("shell", choices=["bash", "zsh", "tcsh"], help="the shell")
    completion.set_defaults(run=lambda args: _print(args.shell, make_parser()))


def _print(shell: str, parser: argparse.ArgumentParser) -> None:
    try:
        import shtab
    except ModuleNotFoundError as error:
        raise UserError(f"completion: {error}; {install_line('completion')}") from None
    for action in _actions(parser):
        if action.type is Path:
            action.complete = shtab.FILE  # type: ignore[attr-defined]  # where shtab looks for it
    print(shtab.complete(parser, shell=shell))


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield the arguments of a parser and of all its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
