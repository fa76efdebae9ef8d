"""Whether the disk of train.output_dir has room for what a run will write, before it trains."""

from __future__ import annotations

import shutil
from pathlib import Path

from fairhuman import checkpointing
from fairhuman.common.errors import OutputError
from fairhuman.common.units import DTYPES, GIB
from fairhuman.config import Config
from fairhuman.models.method import Method
from fairhuman.models.parts import models_of
from fairhuman.zero.optimizers import MOMENT_BYTES


def checkpoint_bytes(config: Config, trained: int) -> int:
    """Return what a checkpoint takes, without its headers.

    ZeRO-1 and 2 keep the weights, float32 master weights and the optimizer's moments; ZeRO-3 keeps
    no weights of their own. Frozen weights are in no checkpoint.

    Args:
        config: the run's.
        trained: parameters that are.
    """
    weights = DTYPES[config.train.precision].itemsize
    if config.deepspeed["zero_optimization"]["stage"] == 3:
        weights = 0
    average = 4 if config.train.ema_decay is not None else 0
    per_parameter = weights + 4 + MOMENT_BYTES[config.optimizer.name] + average
    return int(trained * per_parameter)


def check_disk(config: Config, trained: int, final: int, step: int) -> list[str]:
    """Return a line where not all that a run will keep fits on the disk.

    Args:
        config: the run's.
        trained: parameters that are.
        final: bytes of OUT/final.
        step: after which the run starts.

    Raises:
        OutputError: not even the next checkpoint fits.
    """
    output = Path(config.train.output_dir)
    each = checkpoint_bytes(config, trained)
    try:
        free = shutil.disk_usage(output).free
    except OSError:  # a file system that does not tell
        return []
    room = f"its disk has {free / GIB:.2f} GiB free"
    if each > free:
        raise OutputError(
            f"train.output_dir = {str(output)[:200]!r}: a checkpoint takes {each / GIB:.2f} GiB, "
            f"and {room}; free some, or choose another disk"
        )
    # The oldest is dropped when the new one is whole.
    kept = config.train.keep_checkpoints + 1 + (config.train.keep_best is not None)
    more = max(1, min(_written(config, step), kept - len(checkpointing.folders(output))))
    every, total = config.train.export_every, config.train.total_steps
    exports = total // every - step // every if every else 0
    needed = more * each + (1 + exports) * final
    if needed <= free:
        return []
    rest = f", and {exports} exports of its size" if exports else ""
    return [
        f"train.output_dir: {more} more checkpoints of {each / GIB:.2f} GiB and OUT/final of "
        f"{final / GIB:.2f} GiB{rest} take {needed / GIB:.2f} GiB, and {room}: the run will end "
        "when it is full; free some, or lower train.keep_checkpoints"
    ]


def _written(config: Config, step: int) -> int:
    """Return how many checkpoints the rest of a run writes, but for those of new bests."""
    every = config.train.checkpoint_every or config.train.total_steps
    return -(-config.train.total_steps // every) - step // every


def sizes(method: Method, config: Config) -> tuple[int, int]:
    """Return the number of trained parameters, and the bytes of OUT/final; before ZeRO-3 cuts them.

    Args:
        method: what is trained.
        config: the run's; a full fine-tuning writes the whole pipeline, others what they train.
    """
    trained = sum(p.numel() for p in method.module.parameters() if p.requires_grad)
    if config.model.method != "full":
        return trained, trained * DTYPES[config.train.precision].itemsize
    parts = models_of(method.pipeline).values()
    return trained, sum(p.numel() * p.element_size() for part in parts for p in part.parameters())
