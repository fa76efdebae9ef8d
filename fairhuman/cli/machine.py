"""Commands of the machine and what is on it."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fairhuman.common.errors import UserError
from fairhuman.common.quoting import shown


def add(commands: Any) -> None:
    """Add them to the subparsers of `fairhuman`."""
    doctor = commands.add_parser(
        "doctor", help="check the installation, the hardware and the memory that a config needs"
    )
    doctor.add_argument(
        "--config", nargs="+", help="training configs to check; default: those in configs/"
    )
    doctor.add_argument(
        "--gpus",
        type=int,
        metavar="N",
        help="print the memory that --config needs on each of N GPUs, without loading weights",
    )
    doctor.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="config keys to override",
    )
    doctor.add_argument(
        "--checkpoint",
        type=Path,
        metavar="DIR",
        help="describe a checkpoint, or all of those in a run's train.output_dir, instead",
    )
    doctor.add_argument(
        "--json", action="store_true", help="print JSON, for scripts and bug reports"
    )
    doctor.set_defaults(run=_doctor)


def _doctor(args: argparse.Namespace) -> int:
    # argparse gives all that follows --config to it.
    given = [*(args.config or []), *args.overrides]
    overrides = [word for word in given if "=" in word]
    configs = [Path(word) for word in given if "=" not in word]
    if args.gpus is not None:
        return _doctor_memory(args, configs, overrides)
    if args.checkpoint:
        if overrides:
            word = shown(overrides[0])
            raise UserError(f"{word}: --checkpoint reads what was saved; leave it out")
        return _doctor_checkpoint(args, configs)
    from fairhuman.config import training_configs
    from fairhuman.planning.doctor import examine

    report = examine(configs or training_configs(Path("configs")), overrides)
    print(json.dumps(asdict(report), indent=2) if args.json else "\n".join(report.lines()))
    if report.refused:
        return 2
    return 1 if report.problems else 0


def _doctor_memory(args: argparse.Namespace, configs: list[Path], overrides: list[str]) -> int:
    if args.gpus < 1:
        raise UserError(f"--gpus {args.gpus}: must be at least 1")
    if args.checkpoint:
        raise UserError("--gpus: plans a config's memory; leave --checkpoint out")
    if len(configs) != 1:
        raise UserError(
            f"--gpus: plans one config's memory; give --config one ({len(configs)} given)"
        )
    from fairhuman.config import load_config

    config = load_config(configs[0], overrides)
    from fairhuman.common.quiet import quiet

    quiet()
    from fairhuman.planning.memory_plan import Sizes, plan_memory
    from fairhuman.planning.savings import lines, savings

    sizes = Sizes.of(config)
    plan = plan_memory(config, sizes, args.gpus)
    less = savings(configs[0], overrides, sizes, args.gpus)
    if args.json:
        told = {" ".join(change): bytes_ for change, bytes_ in less}
        print(json.dumps({**plan.as_json(), "savings": told}, indent=2))
    else:
        print("\n".join([*plan.lines(), *lines(less)]))
    return 0


def _doctor_checkpoint(args: argparse.Namespace, configs: list[Path]) -> int:
    from fairhuman.common.quiet import quiet

    quiet()
    from fairhuman.checkpointing.report import as_json, examine

    if len(configs) > 1:
        raise UserError("--config: give one config at most with --checkpoint")
    found = examine(args.checkpoint, configs[0] if configs else None)
    print(json.dumps(as_json(found), indent=2) if args.json else "\n".join(found.lines()))
    return 0 if found.sound else 1
