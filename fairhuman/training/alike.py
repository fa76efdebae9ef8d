"""Ranks that were started with other settings or packages than the rest, found at the start."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from fairhuman.checkpointing.changes import changes
from fairhuman.common.distributed import gathered, on_rank0
from fairhuman.common.errors import ConfigError
from fairhuman.common.quoting import shown
from fairhuman.common.versions import PACKAGES, version
from fairhuman.config import Config

_OF_A_MACHINE = re.compile(r"data\.(root|index|workers|sources\[\d+\]\.root)")
"""Keys that may differ: each machine may have its own copy of the images."""


def check_alike(config: Config) -> None:
    """Check that all ranks have the same config and the same packages; a collective.

    Raises:
        ConfigError: one has not; one line for each difference, on every rank.
    """
    names = ("fairhuman", *PACKAGES)
    ranks = gathered(
        lambda: (config.model_dump(mode="json"), {name: version(name) for name in names})
    )

    def compare() -> None:
        for rank, (settings, packages) in enumerate(ranks):
            problems = [*_settings(config, settings, rank), *_packages(ranks[0][1], packages, rank)]
            if problems:
                raise ConfigError("\n".join(problems))

    on_rank0(compare)


def _settings(first: Config, settings: dict[str, Any], rank: int) -> Iterator[str]:
    for change in changes(settings, first).found:
        if not _OF_A_MACHINE.fullmatch(change.key):
            yield (
                f"{change.key} = {shown(change.new)} on rank 0, and {shown(change.old)} "
                f"on rank {rank}: start all ranks with the same config"
            )


def _packages(
    first: dict[str, str | None], others: dict[str, str | None], rank: int
) -> Iterator[str]:
    for name, wanted in first.items():
        if others[name] != wanted:
            yield (
                f"{name}: {wanted or 'none'} on rank 0, and {others[name] or 'none'} on rank "
                f"{rank}: install the same packages on all machines"
            )
