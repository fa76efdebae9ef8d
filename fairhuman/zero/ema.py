"""An exponential moving average of the trained weights, sharded as ZeRO shards them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

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

    def save(self, folder: Path) -> None:
        """Write this rank's part into a checkpoint's folder."""
        shards = {str(index): shard.cpu() for index, shard in enumerate(self.shards)}
        save_file(shards, folder / _name(dist.get_rank()))

    def load(self, folder: Path) -> bool:
        """Bring the average back from a checkpoint of any number of ranks and ZeRO stage.

        Returns:
            Whether there was one; if not, it stays as it is.

        Raises:
            ConfigError: a file of it is missing or damaged.
        """
        layout = read_shard_map(folder)
        if layout is None or not (folder / _name(0)).is_file():
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
        files = [safe_open(folder / _name(rank), "pt") for rank in range(len(layout.ranks))]
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


def _name(rank: int) -> str:
    return f"ema_rank_{rank}.safetensors"
