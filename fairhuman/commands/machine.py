"""Commands of the machine and what is on it."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fairhuman.errors import UserError


def add(commands: Any) -> None:
    """Add them to the subparsers of `fairhuman`."""
    doctor = commands.add_parser(
        "doctor", help="what was built, what the machine has, what each config would use"
    )
    doctor.add_argument(
        "--config", type=Path, nargs="+", help="default: those in configs/, where there are any"
    )
    doctor.add_argument(
        "--checkpoint",
        type=Path,
        metavar="DIR",
        help="look at a checkpoint, or at all in a run's train.output_dir, instead",
    )
    doctor.add_argument("--json", action="store_true", help="for scripts and bug reports")
    doctor.set_defaults(run=_doctor)


def _doctor(args: argparse.Namespace) -> int:
    if args.checkpoint:
        return _doctor_checkpoint(args)
    from fairhuman.config import training_configs
    from fairhuman.doctor import examine

    report = examine(args.config or training_configs(Path("configs")))
    print(json.dumps(asdict(report), indent=2) if args.json else "\n".join(report.lines()))
    return 1 if report.problems else 0


def _doctor_checkpoint(args: argparse.Namespace) -> int:
    from fairhuman.runtime import quiet

    quiet()
    from fairhuman.checkpoint_report import as_json, examine

    if args.config and len(args.config) > 1:
        raise UserError("--config: give one config at most with --checkpoint")
    found = examine(args.checkpoint, args.config[0] if args.config else None)
    print(json.dumps(as_json(found), indent=2) if args.json else "\n".join(found.lines()))
    return 0 if found.sound else 1
