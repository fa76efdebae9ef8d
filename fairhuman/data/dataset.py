"""From records to batches of tensors."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fairhuman.config import Data
from fairhuman.data.buckets import frame
from fairhuman.data.order import Draw, StepSampler, generator
from fairhuman.data.records import Record, open_image, open_mask
from fairhuman.data.regions import Box, as_tensor, rasterize, to_latent, widen
from fairhuman.data.transform import Placement, grey


@dataclass(frozen=True)
class Batch:
    """Samples as the training step takes them."""

    ids: list[str]
    epochs: list[int]
    pixels: Tensor
    """[B, 3, H, W] float32 in [-1, 1]."""
    masks: Tensor
    """[B, R, H / cell, W / cell] float32 in [0, 1], at latent resolution."""
    captions: list[str | None]
    """None: trained without its caption."""
    time_ids: Tensor
    """[B, 6] float32: SDXL's original size, crop corner and target size."""
    control: Tensor | None = None
    """[B, 3, H, W] float32 in [0, 1]: the control image, all 0 where it is dropped. None: the
    data set has none."""

    def split(self, size: int) -> list[Batch]:
        """Return the batch in pieces of `size` samples."""
        return [
            Batch(
                self.ids[i : i + size],
                self.epochs[i : i + size],
                self.pixels[i : i + size],
                self.masks[i : i + size],
                self.captions[i : i + size],
                self.time_ids[i : i + size],
                None if self.control is None else self.control[i : i + size],
            )
            for i in range(0, len(self.ids), size)
        ]


class People(Dataset[Batch]):
    """The samples of a data set; a sample is a function of (seed, epoch, record)."""

    def __init__(
        self, records: Sequence[Record], regions: Sequence[str], data: Data, seed: int, cell: int
    ) -> None:
        self.records = records
        self.regions = list(regions)
        self.data = data
        self.seed = seed
        self.cell = cell
        """Pixels per side of a latent cell."""

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, draw: Draw) -> Batch:
        """Return the sample as a batch of one."""
        epoch, index = draw
        record = self.records[index]
        placement = self.placement(record, epoch)
        image = placement.image(open_image(record.image))
        pixels = torch.from_numpy(np.array(image, dtype=np.float32)).permute(2, 0, 1)
        dropout = generator(self.seed, epoch, record.id, "caption").random()
        return Batch(
            ids=[record.id],
            epochs=[epoch],
            pixels=(pixels / 127.5 - 1.0)[None],
            masks=self._masks(record, placement)[None],
            captions=[None if dropout < self.data.caption_dropout else record.text],
            time_ids=torch.tensor([placement.time_ids()], dtype=torch.float32),
            control=self._control(record, placement, epoch),
        )

    def placement(self, record: Record, epoch: int) -> Placement:
        """Return how the record's image lies in its training image in that epoch."""
        return Placement.draw(
            record.size,
            frame(record.size, self.data),
            generator(self.seed, epoch, record.id, "placement"),
            crop=self.data.crop,
            flip=self.data.flip,
            keep=self._boxes(record) if self.data.crop == "regions" else (),
        )

    def _control(self, record: Record, placement: Placement, epoch: int) -> Tensor | None:
        if record.conditioning is None:
            return None
        image = placement.image(open_image(record.conditioning))
        pixels = torch.from_numpy(np.array(image, dtype=np.float32)).permute(2, 0, 1) / 255.0
        dropout = generator(self.seed, epoch, record.id, "condition").random()
        kept = dropout >= self.data.condition_dropout
        return (pixels if kept else torch.zeros_like(pixels))[None]

    def _boxes(self, record: Record) -> list[Box]:
        """Return where the record's regions are; of a mask, the box around what is white."""
        boxes: list[Box] = []
        for region in self.regions:
            annotation = record.regions[region]
            if annotation.mask is None:
                boxes += annotation.boxes
            elif around := open_mask(annotation.mask).point(lambda v: 255 * (v > 127)).getbbox():
                left, top, right, bottom = around
                boxes.append((left, top, right - left, bottom - top))
        return boxes

    def _masks(self, record: Record, placement: Placement) -> Tensor:
        masks = []
        for region in self.regions:
            annotation = record.regions[region]
            if annotation.mask is not None:
                masks.append(grey(placement.image(open_mask(annotation.mask))))
            else:
                boxes = widen(placement.boxes(annotation.boxes), self.data.mask_margin)
                masks.append(rasterize(boxes, placement.size))
        return to_latent(as_tensor(masks, placement.size), self.cell)


def collate(samples: Sequence[Batch]) -> Batch:
    """Join batches into one."""
    controls = [sample.control for sample in samples if sample.control is not None]
    return Batch(
        ids=[name for sample in samples for name in sample.ids],
        epochs=[epoch for sample in samples for epoch in sample.epochs],
        pixels=torch.cat([sample.pixels for sample in samples]),
        masks=torch.cat([sample.masks for sample in samples]),
        captions=[caption for sample in samples for caption in sample.captions],
        time_ids=torch.cat([sample.time_ids for sample in samples]),
        control=torch.cat(controls) if controls else None,
    )


def _outlive_signals(worker: int) -> None:
    """Let a worker go on when its process group is signalled, until its rank has ended.

    Otherwise it dies, and with it the rank that wants to finish its step and write a checkpoint.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def steps(people: People, sampler: StepSampler, workers: int) -> Iterator[list[Batch]]:
    """Yield this rank's micro-batches of each optimizer step, without end."""
    loader = DataLoader(
        people,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=_outlive_signals,
    )
    for batch in loader:
        yield batch.split(sampler.batch_size)
