"""The form of an engine's checkpoints."""

from __future__ import annotations

import torch.distributed as dist

from fairhuman.checkpointing.manifest import (
    Setup,
    setup_of,
)
from fairhuman.zero.protocol import Engine
from fairhuman.zero.state_files import optimizer_name


def setup_of_engine(engine: Engine) -> Setup:
    """Return what a checkpoint of an engine depends on."""
    return setup_of(engine.config, optimizer_name(engine), dist.get_world_size())
