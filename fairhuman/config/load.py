"""Reads a config: YAML, overrides, a DeepSpeed config in a file of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairhuman.common.errors import ConfigError
from fairhuman.common.json_text import parse_config
from fairhuman.common.paths import at_home
from fairhuman.common.quoting import shown, shown_key
from fairhuman.common.text_files import read_small
from fairhuman.common.yaml_text import NULLS, Plain
from fairhuman.config.conflicts import conflicts
from fairhuman.config.prompt_file import read_prompt_file
from fairhuman.config.schema import Config
from fairhuman.config.shipped import DEEPSPEED, config_file
from fairhuman.config.yaml_settings import apply_override, read_yaml, refusal, validate


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML config, apply `section.key=value` overrides, and check it.

    Args:
        path: of the file, or the name of a config that comes with FairHuman, such as sdxl_lora.
        overrides: what to set over it.

    Raises:
        ConfigError: every problem found, one line each.
    """
    path = config_file(path)
    tree = read_yaml(path)
    if "arms" in tree:
        raise ConfigError(
            f"{shown_key(path)}: describes a study of several runs; give it to `fairhuman study`"
        )
    for override in overrides:
        if override.startswith("deepspeed."):
            _resolve_deepspeed(tree)
        apply_override(tree, override, Config)
    _resolve_deepspeed(tree)
    _resolve_prompts(tree)
    config = validate(Config, tree, path)
    problems = conflicts(config)
    if problems:
        raise refusal(path, problems)
    return config


def load_for(folder: Path, path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a config as if `folder` were its one data set; one of its sources keeps its columns.

    Raises:
        ConfigError: every problem found, one line each.
    """
    data = read_yaml(config_file(path)).get("data")
    if not (isinstance(data, dict) and data.get("sources")):
        return load_config(path, [*overrides, f"data.root={folder}"])
    config = load_config(path, overrides)
    columns = next(
        (s.columns for s in config.data.sources if Path(s.root).resolve() == folder.resolve()), None
    )
    alone: dict[str, Any] = {"root": str(folder), "sources": []}
    if columns is not None:
        alone["columns"] = columns
    return config.model_copy(update={"data": config.data.model_copy(update=alone)})


def training_configs(folder: Path) -> list[Path]:
    """Return a folder's training configs: all YAML files but studies."""
    return [path for path in sorted(folder.glob("*.yaml")) if "arms" not in read_yaml(path)]


def _resolve_deepspeed(tree: dict[str, Any]) -> None:
    """Replace the path or the name of a DeepSpeed config by its text."""
    path = tree.get("deepspeed")
    if isinstance(path, str) and not (isinstance(path, Plain) and path in NULLS):
        tree["deepspeed"] = _read_deepspeed(path)


def _resolve_prompts(tree: dict[str, Any]) -> None:
    """Replace the path of a file of prompts by what it holds."""
    train = tree.get("train")
    if not isinstance(train, dict):
        return
    path = train.get("sample_prompts")
    if isinstance(path, str) and not (isinstance(path, Plain) and path in NULLS):
        train["sample_prompts"] = read_prompt_file(_at_home(path), "train.sample_prompts")


def _at_home(path: str) -> Path:
    try:
        return at_home(Path(path))
    except ValueError as error:
        raise ConfigError(f"train.sample_prompts = {shown(path)}: {error}") from None


def _read_deepspeed(path: str) -> dict[str, Any]:
    name = f"deepspeed = {shown(str(path))}"
    try:
        tree = parse_config(read_small(config_file(path, DEEPSPEED), "file"), shown_key(path))
    except ConfigError as error:
        problem = str(error).removeprefix(f"{shown_key(path)}: ")
        raise ConfigError(f"{name}: {problem}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{name}: must hold a JSON object")
    return tree
