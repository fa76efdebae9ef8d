"""Commands of configs: their JSON schema."""

from __future__ import annotations

import argparse
import json
from typing import Any


def add(commands: Any) -> None:
    """Add them to the subparsers of `fairhuman`."""
    config = commands.add_parser("config", help="print the JSON schema of a config")
    actions = config.add_subparsers(required=True, metavar="ACTION")
    schema = actions.add_parser(
        "schema", help="print the JSON schema by which editors complete and check a config"
    )
    schema.add_argument(
        "--study", action="store_true", help="print that of a study instead of a training config"
    )
    schema.set_defaults(run=_schema)


def _schema(args: argparse.Namespace) -> None:
    from fairhuman.config.json_schema import config_schema
    from fairhuman.evaluation.study.plan import study_schema

    print(json.dumps(study_schema() if args.study else config_schema(), indent=2))
