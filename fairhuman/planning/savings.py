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
    found, of_all = [], sizes
    for change in _CHANGES:
        recounted = change == _QUANTIZED  # the one after which the model is another
        if recounted and config.model.quantize:
            continue
        result = _with(path, [*overrides, *change], None if recounted else sizes, gpus)
        if result and result[1] < peak - LEAST:
            found.append((change, result[1]))
            of_all = result[0] if recounted else of_all
    if len(found) > 1:
        every = tuple(word for change, _ in found for word in change)
        result = _with(path, [*overrides, *every], of_all, gpus)
        if result:
            found.append((every, result[1]))
    return found


def lines(found: Sequence[tuple[tuple[str, ...], float]]) -> Iterator[str]:
    """Yield them as text."""
    if found:
        yield "would need less:"
    for index, (change, bytes_) in enumerate(found):
        alone = index < len(found) - 1 or len(found) == 1
        yield f"  {bytes_ / GIB:5.1f} GiB  {' '.join(change) if alone else 'all of these'}"


def _with(
    path: Path, overrides: Sequence[str], sizes: Sizes | None, gpus: int
) -> tuple[Sizes, float] | None:
    """Return a changed config's sizes, which are counted if they are None, and its peak."""
    try:
        config = load_config(path, overrides)
        sizes = sizes or Sizes.of(config)
        return sizes, _peak(config, sizes, gpus)
    except ConfigError:  # it has something that does not go with the change
        return None


def _peak(config: Config, sizes: Sizes, gpus: int) -> float:
    plan = plan_memory(config, sizes, gpus)
    return plan.total(plan.peak)
