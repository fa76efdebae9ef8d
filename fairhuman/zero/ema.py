"""An exponential moving average of the trained weights, sharded as ZeRO shards them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fairhuman.common.errors import ConfigError
from fairhuman.zero.protocol import Engine
from fairhuman.zero.shard_map import ShardMap, buffers_of, overlaps, publish, read_shard_map


class EMA:
    """The average of the float32 master weights: each rank holds that of its own shard.

    Args:
        engine: a DeepSpeed engine; its weights as they are now are the start.
        decay: the most that is kept of the average per step.
    """

    def __init__(self, engine: Engine, decay: float) -> None:
        self.engine = engine
        self.decay = decay
        self.shards = [master.detach().clone() for _, master in buffers_of(engine)]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the weights after a step, counted from 1, into the average.

        With min(decay, (1 + step) / (10 + step)) as the decay (as diffusers' EMAModel), so that
        the first weights are forgotten soon.
        """
        kept = min(self.decay, (1 + step) / (10 + step))
        for shard, (_, master) in zip(self.shards, buffers_of(self.engine), strict=True):
            shard.lerp_(master, 1 - kept)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Have the model compute with the average; entering and leaving are collectives.

        An error in the body leaves the average in the model: the other ranks may be elsewhere,
        and would never join the collective that brings the weights back. It ends the run.
        """
        self._swap()
        yield
        self._swap()

    def state(self) -> dict[str, Tensor]:
        """Return this rank's part of the average, as it is until the next step."""
        return {str(index): shard for index, shard in enumerate(self.shards)}

    def load(self, folder: Path) -> bool:
        """Bring the average back from a checkpoint of any number of ranks and ZeRO stage.

        Returns:
            Whether there was one; if not, it stays as it is.

        Raises:
            ConfigError: a file of it is missing or damaged.
        """
        layout = read_shard_map(folder)
        if layout is None or not average_file(folder, 0).is_file():
            return False
        try:
            self._fill(folder, layout)
        except (OSError, SafetensorError) as error:
            raise ConfigError(
                f"{folder}: its moving average cannot be read ({error}); resume from another "
                "checkpoint"
            ) from error
        return True

    @torch.no_grad()
    def _fill(self, folder: Path, layout: ShardMap) -> None:
        places = layout.index()
        files = [safe_open(average_file(folder, rank), "pt") for rank in range(len(layout.ranks))]
        for shard, (buffer, _) in zip(self.shards, buffers_of(self.engine), strict=True):
            for piece in buffer.pieces:
                for source in overlaps(places[piece.name], piece):
                    stored = files[source.rank].get_slice(str(source.buffer))
                    start = piece.offset + source.at
                    values = stored[source.offset : source.offset + source.numel]
                    shard[start : start + source.numel].copy_(values)

    @torch.no_grad()
    def _swap(self) -> None:
        for shard, (_, master) in zip(self.shards, buffers_of(self.engine), strict=True):
            weights = master.detach().clone()
            master.data.copy_(shard)
            shard.copy_(weights)
        publish(self.engine)


def average_file(folder: Path, rank: int | None = None) -> Path:
    """Return a rank's file in a checkpoint's folder; None: this rank's."""
    return folder / f"ema_rank_{dist.get_rank() if rank is None else rank}.safetensors"


def write_average(state: Mapping[str, Tensor], path: Path) -> None:
    """Write a rank's part of an average, of `EMA.state`."""
    save_file({name: shard.cpu() for name, shard in state.items()}, path)
