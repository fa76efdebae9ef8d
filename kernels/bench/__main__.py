"""`python -m fairhuman.kernels.bench [--op OP …] [--quick] [--csv FILE] [--plot DIR]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import torch

from fairhuman.kernels.bench import report
from fairhuman.kernels.bench.timing import bandwidth, time_in_turn

OPS = ("solve_mpd", "region_mse", "gram", "combine", "add_sketch", "fair_backward")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser, of which the CLI reference is made too."""
    parser = argparse.ArgumentParser(
        prog="python -m fairhuman.kernels.bench", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "--op", action="append", choices=OPS, help="an operation, may be repeated; default: all"
    )
    parser.add_argument("--quick", action="store_true", help="the small sizes alone")
    parser.add_argument("--csv", type=Path, help="append the rows to this file")
    parser.add_argument("--plot", type=Path, metavar="DIR", help="draw one picture per operation")
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        choices=("cpu", "cuda"),
        help="default: cuda where there is a GPU",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Check, time and report; returns 1 where an operation failed its check."""
    args = make_parser().parse_args(argv)
    device = torch.device(args.device)
    limit = bandwidth(device)
    print(f"{report.device_name(device)}: {limit / 1e9:.0f} GB/s measured", file=sys.stderr)
    table: list[report.Row] = []
    failed = False
    for op in args.op or OPS:
        for case in import_module(f"fairhuman.kernels.bench.{op}").cases(device, args.quick):
            try:
                case.check()
            except AssertionError as error:
                failed = True
                print(error, file=sys.stderr)
                continue
            found = list(report.rows(case, time_in_turn(case.contenders), limit, device))
            table += found
            if args.csv:  # at once: what follows can take minutes, or fail
                report.write_csv(found, args.csv)
            print(f"{op}, {case.problem}: done", file=sys.stderr)
    print(report.as_markdown(table))
    if args.plot:
        for path in report.plot(table, args.plot):
            print(path, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
