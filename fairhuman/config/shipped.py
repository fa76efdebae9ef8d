"""The configs that come with FairHuman, which may be named in place of a path."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from fairhuman.common.errors import ConfigError
from fairhuman.common.quoting import shown_key
from fairhuman.config.yaml_settings import near

DEEPSPEED = "deepspeed"
"""The folder of DeepSpeed's configs among them."""


def shipped(kind: str = "") -> dict[str, Path]:
    """Return the files by their names: training configs and studies, or DeepSpeed's."""
    folder = Path(str(resources.files("fairhuman.configs"))) / kind
    return {path.stem: path for path in sorted(folder.glob("*.json" if kind else "*.yaml"))}


def config_file(given: str | Path, kind: str = "") -> Path:
    """Return the file that a path leads to, or a name stands for.

    A name has no folder and no ending, and a file that is called so goes before it.

    Raises:
        ConfigError: it is a name, and neither a file nor a config that comes with FairHuman.
    """
    path, name = Path(given), str(given)
    if path.name != name or path.suffix or path.exists():
        return path
    return named(name, kind)


def named(name: str, kind: str = "") -> Path:
    """Return the file of a config that comes with FairHuman.

    Raises:
        ConfigError: none is called so.
    """
    known = shipped(kind)
    if name not in known:
        raise ConfigError(
            f"{shown_key(name)}: there is no such file, and no config that comes with FairHuman is "
            f"called so{near(name, list(known))}; those are {', '.join(known)}"
        )
    return known[name]
