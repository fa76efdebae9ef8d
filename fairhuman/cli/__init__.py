"""The command line: `fairhuman COMMAND …`."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Sequence

from fairhuman import __version__
from fairhuman.cli import completion, configs, data, machine, models, results, training
from fairhuman.common.error_text import located
from fairhuman.common.errors import UserError
from fairhuman.common.paths import expand_arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code.

    2: a mistake of the user's, such as a config that cannot run, or a file that cannot be read
    or written; 1: `doctor` or `inspect --strict` found something wrong; 141: what reads the
    output has ended, as `head` does.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name may hold what no encoding has
        sys.stdout.reconfigure(errors="backslashreplace")
    args = make_parser().parse_args(argv)
    try:
        expand_arguments(args)
        code: int = args.run(args) or 0
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"fairhuman: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Python writes what is left once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        print(f"fairhuman: {located(error)}", file=sys.stderr)
        return 2


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of `fairhuman`, of which the CLI reference is made too."""
    parser = argparse.ArgumentParser(prog="fairhuman", description=__doc__.partition("\n")[0])
    parser.add_argument("--version", action="version", version=f"fairhuman {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for family in (data, training, configs, models, results, machine):
        family.add(commands)
    completion.add(commands, make_parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
