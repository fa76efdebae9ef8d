"""What would make a config need less of a GPU's memory, and how much it would then need."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from fairhuman.common.errors import ConfigError
from fairhuman.common.units import GIB
from fairhuman.config import Config, load_config
from fairhuman.planning.memory_plan import Sizes, plan_memory

_QUANTIZED = ("model.quantize=int8",)
_CHANGES: tuple[tuple[str, ...], ...] = (
    _QUANTIZED,
    ("data.cache=FOLDER",),
    ("fairness.mode=sketch",),
    ("deepspeed.zero_optimization.offload_optimizer={device: cpu}", "optimizer.name=AdamW"),
)
LEAST = 0.05 * GIB
"""Bytes that a change must save to be named."""


def savings(
    path: Path, overrides: Sequence[str], sizes: Sizes, gpus: int
) -> list[tuple[tuple[str, ...], float]]:
    """Return changes to a config that lower its peak, each alone, then all: words and bytes.

    Changes that cannot be made to it, or that save next to nothing, are left out.
    """
    config = load_config(path, overrides)
    peak = _peak(config, sizes, gpus)
    # The one change after which the model is another: what it needs is counted again.
    smaller = None if config.model.quantize else _counted(path, [*overrides, *_QUANTIZED])
    found = []
    for change in _CHANGES:
        counted = smaller if change == _QUANTIZED else sizes
        bytes_ = _with(path, [*overrides, *change], counted, gpus) if counted else None
        if bytes_ is not None and bytes_ < peak - LEAST:
            found.append((change, bytes_))
    if len(found) > 1:
        every = tuple(word for change, _ in found for word in change)
        bytes_ = _with(path, [*overrides, *every], smaller or sizes, gpus)
        if bytes_ is not None:
            found.append((every, bytes_))
    return found


def lines(found: Sequence[tuple[tuple[str, ...], float]]) -> Iterator[str]:
    """Yield them as text."""
    if found:
        yield "would need less:"
    for index, (change, bytes_) in enumerate(found):
        alone = index < len(found) - 1 or len(found) == 1
        yield f"  {bytes_ / GIB:5.1f} GiB  {' '.join(change) if alone else 'all of these'}"


def _counted(path: Path, overrides: Sequence[str]) -> Sizes | None:
    try:
        return Sizes.of(load_config(path, overrides))
    except ConfigError:  # see `_with`
        return None


def _with(path: Path, overrides: Sequence[str], sizes: Sizes, gpus: int) -> float | None:
    try:
        return _peak(load_config(path, overrides), sizes, gpus)
    except ConfigError:  # it has something that does not go with the change
        return None


def _peak(config: Config, sizes: Sizes, gpus: int) -> float:
    plan = plan_memory(config, sizes, gpus)
    return plan.total(plan.peak)
