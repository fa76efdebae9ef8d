"""The command that starts the trainer under DeepSpeed's launcher."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any, NoReturn

from fairhuman.common.errors import UserError


def add(commands: Any) -> None:
    """Add it to the subparsers of `fairhuman`."""
    train = commands.add_parser(
        "train", help="check the config and the data, then start training with DeepSpeed"
    )
    train.add_argument("--config", type=Path, required=True, help="a YAML file; see configs/")
    train.add_argument(
        "--ranks",
        type=int,
        metavar="N",
        help="number of processes, one per GPU; default: all GPUs, or one process on a CPU",
    )
    train.add_argument(
        "--dry-run",
        action="store_true",
        help="print the steps, memory and disk that the run needs, and do not start it",
    )
    train.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="config keys to override"
    )
    train.set_defaults(run=_train)


def _train(args: argparse.Namespace) -> int:
    from fairhuman.config import load_config
    from fairhuman.planning.look_ahead import check_head, lines, of_length

    config = load_config(args.config, args.overrides)
    ranks = _ranks(args.ranks)
    listed = check_head(config)
    config = of_length(config, ranks, listed)
    if args.dry_run:
        from fairhuman.common.quiet import quiet

        quiet()
        print("\n".join(lines(config, ranks, listed)))
        return 0
    return _start(_command(args, ranks), _visible(ranks))


def _start(command: list[str], visible: str | None) -> NoReturn:
    """Become DeepSpeed's launcher, which signals and exit codes are then those of."""
    chosen = {"CUDA_VISIBLE_DEVICES": visible} if visible else {}
    words = [f"{name}={value}" for name, value in chosen.items()]
    print("$", *words, shlex.join(command), flush=True)
    os.execve(command[0], command, os.environ | chosen)


def _ranks(asked: int | None) -> int:
    import torch

    gpus = torch.cuda.device_count()
    if asked is None:
        return max(1, gpus)
    if asked < 1:
        raise UserError(f"--ranks {asked}: must be at least 1")
    if gpus and asked > gpus:
        raise UserError(f"--ranks {asked}: this machine has {gpus} GPUs; each rank needs its own")
    return asked


def _command(args: argparse.Namespace, ranks: int) -> list[str]:
    """Return the command line of DeepSpeed's launcher that does the same."""
    beside = Path(sys.executable).with_name("deepspeed")
    launcher = str(beside) if beside.exists() else shutil.which("deepspeed")
    if launcher is None:
        raise UserError(
            f"deepspeed: its command is not next to {sys.executable} and not on the PATH; "
            "install FairHuman with pip into the environment that you call it from"
        )
    import fairhuman

    script = Path(fairhuman.__file__).with_name("train.py")
    count = [] if _visible(ranks) else ["--num_accelerators", str(ranks)]
    return [launcher, *count, str(script), "--config", str(args.config), *args.overrides]


def _visible(ranks: int) -> str | None:
    """Return what CUDA_VISIBLE_DEVICES is to be for so many of the GPUs that it names, if any.

    The launcher heeds it where it is told no number of ranks, and no number alone.
    """
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not named or not torch.cuda.device_count():
        return None
    return ",".join(named.split(",")[:ranks])
