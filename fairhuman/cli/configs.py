"""Commands of configs: those that come with FairHuman, and the JSON schema."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from fairhuman.common.errors import OutputError


def add(commands: Any) -> None:
    """Add them to the subparsers of `fairhuman`."""
    config = commands.add_parser(
        "config", help="list, print and copy the configs that come with FairHuman"
    )
    actions = config.add_subparsers(required=True, metavar="ACTION")
    listed = actions.add_parser("list", help="list the configs that come with FairHuman")
    listed.set_defaults(run=_list)
    show = actions.add_parser("show", help="print one of them")
    show.add_argument("name", help="such as sdxl_lora")
    show.set_defaults(run=_show)
    copy = actions.add_parser("copy", help="copy one of them, to be edited")
    copy.add_argument("name", help="such as sdxl_lora")
    copy.add_argument("folder", type=Path, nargs="?", default=Path(), help="where to; default: .")
    copy.set_defaults(run=_copy)
    schema = actions.add_parser("schema", help="print the JSON schema of configs, for editors")
    schema.add_argument(
        "--study", action="store_true", help="print that of a study instead of a training config"
    )
    schema.set_defaults(run=_schema)


def _list(args: argparse.Namespace) -> None:
    from fairhuman.config.shipped import shipped

    files = shipped()
    width = max(map(len, files))
    for name, path in files.items():
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        print(f"{name:{width}}  {first.removeprefix('# ')}")


def _show(args: argparse.Namespace) -> None:
    from fairhuman.config.shipped import named

    print(named(args.name).read_text(encoding="utf-8"), end="")


def _copy(args: argparse.Namespace) -> None:
    from fairhuman.common.files import write_text
    from fairhuman.config.shipped import named

    source = named(args.name)
    target = args.folder / source.name
    if target.exists():
        raise OutputError(f"{target}: already exists; remove it, or name another folder")
    args.folder.mkdir(parents=True, exist_ok=True)
    write_text(target, source.read_text(encoding="utf-8"))
    print(target)


def _schema(args: argparse.Namespace) -> None:
    from fairhuman.config.json_schema import config_schema
    from fairhuman.evaluation.study.plan import study_schema

    print(json.dumps(study_schema() if args.study else config_schema(), indent=2))
