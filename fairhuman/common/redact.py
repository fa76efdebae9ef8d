"""Configs without the places of this machine: what is made to be shown should not tell them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

import yaml

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_PLACES = ("pretrained", "config", "vae", "control", "weights", "root", "output_dir", "resume")


def on_the_hub(name: str) -> bool:
    """Return whether a name is the Hugging Face hub's and no folder's here."""
    return name.startswith("hf://") or (bool(_HUB_NAME.fullmatch(name)) and not Path(name).exists())


def redacted(tree: Any) -> Any:
    """Return a config with each path reduced to its last part."""
    if isinstance(tree, dict):
        return {
            key: PurePath(value).name
            if key in _PLACES and isinstance(value, str) and not on_the_hub(value)
            else redacted(value)
            for key, value in tree.items()
        }
    if isinstance(tree, list):
        return [redacted(value) for value in tree]
    if isinstance(tree, str) and PurePath(tree).is_absolute():
        return PurePath(tree).name
    return tree


def _redacted_yaml(text: str) -> str:
    try:
        tree = redacted(yaml.safe_load(text))
    except yaml.YAMLError:
        return "…"
    return yaml.safe_dump(tree, default_flow_style=True, sort_keys=False, width=10**9).strip()


def redacted_overrides(overrides: Sequence[str]) -> list[str]:
    """Return a command line's section.key=value, with paths reduced likewise."""
    shown = []
    for override in overrides:
        key, equals, value = override.partition("=")
        last = key.rpartition(".")[2]
        if value[:1] in ("[", "{") and "/" in value:
            shown.append(f"{key}={_redacted_yaml(value)}")
        else:
            shown.append(key + equals + str(redacted({last: value})[last]))
    return shown
