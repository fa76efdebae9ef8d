"""The losses on held-out images, with the same noise and timesteps at every measurement.

In every quarter of the timesteps apart, for what a fine-tuning gains in detail (little noise) and
what it loses in composition (much) do not show in their mean.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from fairhuman.common.distributed import agreed
from fairhuman.config import QUARTERS, Config
from fairhuman.data.buckets import Size, frame
from fairhuman.data.cache import Cache
from fairhuman.data.dataset import Batch, People, collate
from fairhuman.data.records import Record, check_held_out
from fairhuman.training.denoising import Denoising
from fairhuman.training.held_out import HeldOut
from fairhuman.training.objectives import RegionObjectives

# An epoch that training never reaches: the held-out samples' random numbers are fixed.
EPOCH = -1


def hold_out(ids: Collection[str], count: int, seed: int) -> NDArray[np.bool_]:
    """Return which `count` of some records are held out of training, [N].

    That depends on (seed, file name) alone, so adding images moves few others.

    Args:
        ids: the records' file names.
        count: how many.
        seed: of the run.

    Raises:
        DataError: nothing would be left to train on.
    """
    check_held_out(count, len(ids))

    def key(name: str) -> bytes:
        return hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=16).digest()

    held = np.zeros(len(ids), dtype=bool)
    first = heapq.nsmallest(count, ((key(name), place) for place, name in enumerate(ids)))
    held[[place for _, place in first]] = True
    return held


def still(
    records: Sequence[Record], config: Config, cell: int, cache: Cache | None = None
) -> People:
    """Return held-out records as they are measured: middle crops, unmirrored, with captions."""
    fixed = {"crop": "center", "flip": False, "caption_dropout": 0.0, "condition_dropout": 0.0}
    data = config.data.model_copy(update=fixed)
    return People(records, config.objectives.regions, data, config.train.seed, cell, cache)


class Validation:
    """Measures the K losses of held-out people, shared out over the ranks."""

    def __init__(self, people: People, denoising: Denoising, batch_size: int) -> None:
        self.people = people
        self.denoising = denoising
        self.batch_size = batch_size

    @torch.no_grad()
    def __call__(self, model: Any) -> HeldOut:
        """Return every image's losses; a collective. To the bit the same on every rank."""
        # An image that one rank cannot read any more must not leave the others in the sum.
        measured = agreed(lambda: self._measured(model))
        dist.all_reduce(measured)  # each image is on one rank, and 0 on the others
        objectives = self.denoising.objectives
        *quarters, areas = measured.cpu()
        return HeldOut(
            names=list(objectives.names),
            images=[record.id for record in self.people.records],
            reduction=objectives.reduction,
            losses=torch.stack(quarters, dim=1),
            areas=areas,
        )

    def is_of(self, found: HeldOut) -> bool:
        """Return whether these are losses of the people and objectives that are measured here."""
        objectives = self.denoising.objectives
        images = [record.id for record in self.people.records]
        mine = (list(objectives.names), images, objectives.reduction)
        return mine == (found.names, found.images, found.reduction)

    def _measured(self, model: Any) -> Tensor:
        """Return [QUARTERS + 1, N, K] float64: losses by quarter, areas; 0 for others' images."""
        count, names = len(self.people), self.denoising.objectives.names
        found = torch.zeros(QUARTERS + 1, count, len(names), dtype=torch.float64)
        for indices in self._batches():
            batch: Batch = collate([self.people[EPOCH, index] for index in indices])
            for quarter, ready in enumerate(self.denoising.quarters(batch)):
                losses = self.denoising.losses_of_images(model, ready)
                found[quarter, indices] = losses.double().cpu()
            for index, masks in zip(indices, batch.masks, strict=True):
                found[-1, index] = RegionObjectives.areas(masks[None])
        return found.to(self.denoising.device)

    def _batches(self) -> list[list[int]]:
        """Return this rank's samples in batches, each of one bucket."""
        buckets: dict[Size, list[int]] = {}
        for index in range(dist.get_rank(), len(self.people), dist.get_world_size()):
            size = frame(self.people.records[index].size, self.people.data)
            buckets.setdefault(size, []).append(index)
        return [
            indices[start : start + self.batch_size]
            for indices in buckets.values()
            for start in range(0, len(indices), self.batch_size)
        ]
