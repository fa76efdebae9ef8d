"""The command that starts the trainer under DeepSpeed's launcher."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from fairhuman.common.errors import UserError

if TYPE_CHECKING:
    from fairhuman.config import Config

_ERROR = re.compile(r"\w*(Error|out of memory)\b")


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
        "--measure",
        action="store_true",
        help="with --dry-run: take a few steps, discard them, and print how long the run takes",
    )
    train.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="config keys to override"
    )
    train.set_defaults(run=_train)


def _train(args: argparse.Namespace) -> int:
    from fairhuman.config import load_config
    from fairhuman.planning.look_ahead import check_head, lines, of_length

    if args.measure and not args.dry_run:
        raise UserError("--measure: belongs to --dry-run; add that")
    config = load_config(args.config, args.overrides)
    ranks = _ranks(args.ranks)
    listed = check_head(config)
    config = of_length(config, ranks, listed)
    if args.dry_run:
        from fairhuman.common.quiet import quiet

        quiet()
        print("\n".join(lines(config, ranks, listed)), flush=True)
        if args.measure:
            print("\n".join(_measured(args, config, ranks)))
        return 0
    return _start(_command(args, ranks), _visible(ranks))


def _measured(args: argparse.Namespace, config: Config, ranks: int) -> list[str]:
    """Take a few steps on so many ranks; return how long the run will take, or why it is unknown.

    What they write is removed.
    """
    from fairhuman.planning.trial_run import Trial, trial_overrides

    with tempfile.TemporaryDirectory(prefix="fairhuman-") as name:
        folder = Path(name)
        out = folder / "trial.json"
        command = [*_launcher(ranks), "--module", "fairhuman.planning.trial_run"]
        command += ["--config", str(args.config), "--out", str(out)]
        command += [*args.overrides, *trial_overrides(config, folder)]
        visible = _visible(ranks)
        done = subprocess.run(
            command,
            env=os.environ | ({"CUDA_VISIBLE_DEVICES": visible} if visible else {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if out.is_file():
            return list(Trial(**json.loads(out.read_text())).lines(config))
    return [f"time: not measured, for the trial run failed: {_reason(done.stdout)}"]


def _reason(printed: str) -> str:
    """Return the line that says why a run failed, of all that its ranks have printed."""
    lines = [line for line in printed.splitlines() if line.strip()]
    errors = [line for line in lines if _ERROR.search(line)]
    return (errors or lines or ["it printed nothing"])[0].strip()[:300]


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
    import fairhuman

    script = Path(fairhuman.__file__).with_name("train.py")
    return [*_launcher(ranks), str(script), "--config", str(args.config), *args.overrides]


def _launcher(ranks: int) -> list[str]:
    """Return the words that start DeepSpeed's launcher, to be followed by a script."""
    beside = Path(sys.executable).with_name("deepspeed")
    launcher = str(beside) if beside.exists() else shutil.which("deepspeed")
    if launcher is None:
        raise UserError(
            f"deepspeed: its command is not next to {sys.executable} and not on the PATH; "
            "install FairHuman with pip into the environment that you call it from"
        )
    count = [] if _visible(ranks) else ["--num_accelerators", str(ranks)]
    return [launcher, *count]


def _visible(ranks: int) -> str | None:
    """Return what CUDA_VISIBLE_DEVICES is to be for so many of the GPUs that it names, if any.

    The launcher heeds it where it is told no number of ranks, and no number alone.
    """
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not named or not torch.cuda.device_count():
        return None
    return ",".join(named.split(",")[:ranks])
