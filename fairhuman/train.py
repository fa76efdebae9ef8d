"""Train SDXL on the whole image, the faces and the hands at once.

deepspeed fairhuman/train.py --config FILE [section.key=value …]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from fairhuman.common.exit_code import exit_code
from fairhuman.common.quiet import quiet
from fairhuman.config import load_config


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line and train; returns the exit code.

    0: at the end; `train.stopped_exit_code`: stopped by a signal; 2: a mistake to be corrected;
    3: `train.max_skips`; 130: stopped before the first step.
    """
    args = make_parser().parse_args(argv)

    def work() -> int:
        config = load_config(args.config, args.overrides)
        quiet()
        from fairhuman.training.loop import (
            train,  # what it imports takes seconds; a mistake shows before
        )

        ended = train(config, args.overrides)
        return 0 if ended else config.train.stopped_exit_code

    return exit_code(work, "train.output_dir")


def make_parser() -> argparse.ArgumentParser:
    """Return the trainer's parser, of which the CLI reference is made too."""
    parser = argparse.ArgumentParser(
        prog="deepspeed fairhuman/train.py", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--config", required=True, help="a YAML file; see configs/")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # from the launcher
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="config keys to override"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
