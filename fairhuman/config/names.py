"""Names that follow from the objectives: columns of metadata.jsonl, keys of held-out losses."""

from __future__ import annotations

from collections.abc import Sequence


def column_names(regions: Sequence[str]) -> list[str]:
    """Return the keys of a data set's rows that are read for these regions."""
    annotations = [name for region in regions for name in (f"{region}s", f"{region}_mask")]
    return ["file_name", "image", "text", "conditioning_image", *annotations]


QUARTERS = 4
"""Parts of the timesteps whose held-out losses are measured apart; the first is the least noisy."""


def held_out_keys(objective: str) -> list[str]:
    """Return the keys of an objective's held-out losses: the mean, and each quarter's."""
    key = f"val/loss/{objective}"
    return [key, *(f"{key}/q{quarter}" for quarter in range(1, QUARTERS + 1))]


def change_keys(objective: str) -> tuple[str, str]:
    """Return the keys of a held-out loss's change since the start in %, and of its error."""
    return f"val/change/{objective}", f"val/change_se/{objective}"
