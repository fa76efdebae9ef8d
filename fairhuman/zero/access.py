"""What `CollectedGradients` needs of a DeepSpeed optimizer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from fairhuman.zero.protocol import Engine


class ShardAccess(ABC):
    """Reads the last backward's gradient out of a DeepSpeed optimizer, and writes the step's in.

    A shard is this rank's part of one gradient, averaged over the ranks and times the loss
    scale: a list of flat tensors, the same sizes at every read.
    """

    needs: ClassVar[tuple[str, ...]]
    """The optimizer's attributes that are read or set, for the check at the start."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.optimizer = engine.optimizer

    @abstractmethod
    def zeros(self) -> list[Tensor]:
        """Return an empty shard in float32, where shards are kept."""

    @abstractmethod
    def read(self) -> list[Sequence[Tensor]]:
        """Return the shard of the backward since the last `reset`.

        Each of its flat tensors comes as the pieces it is made of, in order, in any float type
        and shape; what they do not fill is padding. They are DeepSpeed's own: valid until `reset`.
        """

    @abstractmethod
    def reset(self) -> None:
        """Bring the optimizer back to where no backward has been."""

    @abstractmethod
    def write(self, shard: list[Tensor]) -> None:
        """Make a shard the gradient of the step that `engine.step` takes next.

        An infinite one makes DeepSpeed skip that step on all ranks. May keep the tensors.
        """

    def rescale(self, factor: float) -> None:
        """Multiply the gradient of the last backward, in place: `engine.step` takes it next."""
        for pieces in self.read():
            for piece in pieces:
                piece.mul_(factor)

    def loss_scale(self) -> float:
        """Return the factor that the gradients carry."""
        return float(self.optimizer.loss_scale)

    def mark(self) -> None:  # noqa: B027  # most optimizers keep no notes of a forward pass
        """Remember the state after a forward pass, for `rewind`."""

    def rewind(self) -> None:  # noqa: B027
        """Get ready for another backward pass over the same graph."""
