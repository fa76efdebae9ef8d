"""What an engine's flat tensors may not exceed."""

from __future__ import annotations

from fairhuman.common.errors import ConfigError
from fairhuman.zero.protocol import Engine
from fairhuman.zero.shard_map import buffers_of

LARGEST_TENSOR = 2**31 - 1
"""Elements of a tensor that bitsandbytes can count."""


def check_sizes(engine: Engine) -> None:
    """Check that the optimizer can take this rank's flat tensors.

    Raises:
        ConfigError: one is too large.
    """
    from bitsandbytes.optim import AdEMAMix
    from bitsandbytes.optim.optimizer import Optimizer8bit

    if not isinstance(engine.optimizer.optimizer, Optimizer8bit):
        return
    # Of AdEMAMix it has two averages in one tensor.
    most = LARGEST_TENSOR // (2 if isinstance(engine.optimizer.optimizer, AdEMAMix) else 1)
    for buffer, _ in buffers_of(engine):
        if buffer.numel <= most:
            continue
        largest = max(buffer.pieces, key=lambda piece: piece.numel)
        raise ConfigError(
            f"optimizer.name: a rank's part of parameter group {buffer.group} has {buffer.numel} "
            f"elements, of which {largest.name} has {largest.numel}, and bitsandbytes counts "
            f"{most} at most; use AdamW, more GPUs, or under ZeRO-3 a smaller "
            "deepspeed.zero_optimization.sub_group_size"
        )
