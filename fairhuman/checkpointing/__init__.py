"""Checkpoints: written whole, found, verified, and brought back into engines of any form."""

from fairhuman.checkpointing.balancer_state import load_balancer
from fairhuman.checkpointing.finding import (
    best_kept,
    best_target,
    config_of,
    damage,
    damage_on_ranks,
    find,
    folders,
    newest,
    unsound,
)
from fairhuman.checkpointing.loading import check_base, load, resumable
from fairhuman.checkpointing.rotation import mark_best, rotate
from fairhuman.checkpointing.saving import Saver
from fairhuman.checkpointing.start_losses import StartLosses, load_start

__all__ = [
    "Saver",
    "StartLosses",
    "best_kept",
    "best_target",
    "check_base",
    "config_of",
    "damage",
    "damage_on_ranks",
    "find",
    "folders",
    "load",
    "load_balancer",
    "load_start",
    "mark_best",
    "newest",
    "resumable",
    "rotate",
    "unsound",
]
