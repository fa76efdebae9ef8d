"""The command line: `fairhuman COMMAND …`. Training itself is `deepspeed fairhuman/train.py`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from fairhuman import __version__
from fairhuman.cli import configs, data, machine, models, results
from fairhuman.common.errors import UserError
from fairhuman.common.paths import expand_arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code.

    2: a mistake of the user's, such as a config that cannot run; 1: `doctor` or
    `inspect --strict` found something wrong.
    """
    args = make_parser().parse_args(argv)
    try:
        expand_arguments(args)
        return args.run(args) or 0
    except UserError as error:
        print(f"fairhuman: {error}", file=sys.stderr)
        return 2


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of `fairhuman`, of which the CLI reference is made too."""
    parser = argparse.ArgumentParser(prog="fairhuman", description=__doc__.partition("\n")[0])
    parser.add_argument("--version", action="version", version=f"fairhuman {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for room in (data, configs, models, results, machine):
        room.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
