"""Reads a balancer's state from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fairhuman.common.errors import ConfigError
from fairhuman.common.run_folder import (
    BALANCER,
)
from fairhuman.common.text_files import read_limited

# Far more than it ever has: a few numbers per objective.
_LARGEST_BALANCER = 1 << 20


def load_balancer(folder: Path) -> dict[str, Any] | None:
    """Return the balancer's state, None if there was none.

    Raises:
        ConfigError: it is no such state: a few small float tensors and counts, by name.
    """
    path = folder / BALANCER
    if not path.exists():
        return None
    read_limited(path, _LARGEST_BALANCER)
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises anything, from pickle to zip
        raise ConfigError(f"{path}: cannot be read; resume from another checkpoint") from error
    fits = isinstance(state, dict) and all(
        isinstance(name, str) and _is_count_or_numbers(value) for name, value in state.items()
    )
    fits = fits and ("squares" not in state or _is_measured(state))
    if not fits:
        raise ConfigError(f"{path}: is not the state of a balancer; resume from another checkpoint")
    return dict(state)


def _is_count_or_numbers(value: Any) -> bool:
    if torch.is_tensor(value):
        # NaN stands for what was never measured.
        small = value.layout == torch.strided and value.numel() <= 4096
        kind = value.is_floating_point() or value.dtype == torch.bool
        return bool(small and kind and not value.isinf().any())
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 2**53


def _is_measured(state: Mapping[str, Any]) -> bool:
    """Return whether a state is what gradients may have shown; see `Forecast.state_dict`."""
    squares, cosines, since = (state.get(key) for key in ("squares", "cosines", "since"))
    if not (torch.is_tensor(squares) and torch.is_tensor(cosines) and isinstance(since, int)):
        return False
    shaped = squares.ndim == 1 and cosines.shape == (len(squares), len(squares))
    return bool(shaped and not (squares < 0).any() and not (cosines.abs() > 1.001).any())
