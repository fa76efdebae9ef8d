"""From records to batches of tensors."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fairhuman.common.errors import DataError
from fairhuman.common.images import ImageError, open_image, open_mask
from fairhuman.common.masks import extent
from fairhuman.common.pixels import to_model
from fairhuman.common.readable import Readable
from fairhuman.common.transfer import to_device
from fairhuman.config import Data
from fairhuman.data.buckets import frame
from fairhuman.data.cache import Cache
from fairhuman.data.order import Draw, StepSampler, generator
from fairhuman.data.records import Record
from fairhuman.data.regions import Box, as_tensor, cut, rasterize, to_latent, widen
from fairhuman.data.transform import Placement, Zoom, grey
from fairhuman.models.encoded import Posterior


@dataclass(frozen=True)
class Batch:
    """Samples as the training step takes them."""

    ids: list[str]
    epochs: list[int]
    pixels: Tensor | None
    """[B, 3, H, W] float32 in [-1, 1]; None where `moments` are given."""
    masks: Tensor
    """[B, R, H / cell, W / cell] float32 in [0, 1], at latent resolution."""
    captions: list[str | None]
    """None: trained without its caption."""
    time_ids: Tensor
    """[B, 6] float32: SDXL's original size, crop corner and target size."""
    control: Tensor | None = None
    """[B, 3, H, W] float32 in [0, 1]: the control image, all 0 where it is dropped. None: the
    data set has none."""
    posterior: Posterior | None = None
    """From a cache."""
    prompt: Any = None
    """From a cache: the captions, encoded."""

    def split(self, size: int) -> list[Batch]:
        """Return the batch in pieces of `size` samples."""
        parts = [slice(start, start + size) for start in range(0, len(self.ids), size)]
        return [Batch(*(_sliced(value, part) for value in self._values())) for part in parts]

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device; the host does not wait for the copies."""
        return Batch(*(_moved(value, device) for value in self._values()))

    def _values(self) -> list[Any]:
        return [getattr(self, field.name) for field in fields(self)]


class People(Dataset[Batch]):
    """The samples of a data set; a sample is a function of (seed, epoch, record)."""

    def __init__(
        self,
        records: Sequence[Record],
        regions: Sequence[str],
        data: Data,
        seed: int,
        cell: int,
        cache: Cache | None = None,
    ) -> None:
        self.records = records
        self.regions = list(regions)
        self.data = data
        self.seed = seed
        self.cell = cell
        """Pixels per side of a latent cell."""
        self.cache = cache

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, draw: Draw) -> Batch:
        """Return the sample as a batch of one."""
        epoch = draw[0]
        record, placement, caption = self.drawn(draw)
        cache = self.cache
        return Batch(
            ids=[record.id],
            epochs=[epoch],
            pixels=None if cache else self.pixels(record, placement),
            masks=self._masks(record, placement)[None],
            captions=[caption],
            time_ids=torch.tensor([placement.time_ids()], dtype=torch.float32),
            control=self._control(record, placement, epoch),
            posterior=cache.posterior(record, placement) if cache else None,
            prompt=cache.prompt(caption) if cache else None,
        )

    def drawn(self, draw: Draw) -> tuple[Record, Placement, str | None]:
        """Return what a draw is of: the record, its placement, and its caption unless dropped."""
        epoch, index = draw
        record = self.records[index]
        dropout = generator(self.seed, epoch, record.id, "caption").random()
        caption = None if dropout < self.data.caption_dropout else record.text
        return record, self.placement(record, epoch), caption

    def pixels(self, record: Record, placement: Placement) -> Tensor:
        """Return the training image, [1, 3, H, W] in [-1, 1]."""
        image = placement.image(_read(open_image, record.image))
        return to_model([image])

    def placement(self, record: Record, epoch: int) -> Placement:
        """Return how the record's image lies in its training image in that epoch."""
        zooms = self.data.crop == "zoom"
        by_regions = zooms or self.data.crop == "regions"
        return Placement.draw(
            record.size,
            frame(record.size, self.data),
            generator(self.seed, epoch, record.id, "placement"),
            crop="regions" if by_regions else self.data.crop,
            flip=self.data.flip,
            keep=self._boxes(record) if by_regions else (),
            zoom=Zoom(self.data.zoom_share, self.data.zoom) if zooms else None,
        )

    def _control(self, record: Record, placement: Placement, epoch: int) -> Tensor | None:
        if record.conditioning is None:
            return None
        image = placement.image(_read(open_image, record.conditioning))
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
                continue
            mask = _read(open_mask, annotation.mask)
            if around := extent(np.asarray(mask) > 127):
                boxes.append(around)
        return boxes

    def _masks(self, record: Record, placement: Placement) -> Tensor:
        masks = []
        for region in self.regions:
            annotation = record.regions[region]
            if annotation.mask is not None:
                masks.append(grey(placement.image(_read(open_mask, annotation.mask))))
            else:
                # Cut first: what is not in the crop must not be widened into it.
                seen = cut(placement.boxes(annotation.boxes), placement.size)
                masks.append(rasterize(widen(seen, self.data.mask_margin), placement.size))
        return to_latent(as_tensor(masks, placement.size), self.cell)


def _read(read: Callable[[Readable], Image.Image], path: Readable) -> Image.Image:
    """Read a file that could be read when the run began.

    Raises:
        DataError: it cannot be read any more.
    """
    try:
        return read(path)
    except ImageError as error:
        raise DataError(f"{path}: {error}") from None


def collate(samples: Sequence[Batch]) -> Batch:
    """Join batches into one."""
    return Batch(*map(_joined, zip(*(sample._values() for sample in samples), strict=True)))


def _moved(value: Any, device: torch.device) -> Any:
    """Return one of a batch's values with its tensors on a device."""
    if isinstance(value, tuple):
        return type(value)(*(to_device(tensor, device) for tensor in value))
    return to_device(value, device) if isinstance(value, Tensor) else value


def _sliced(value: Any, part: slice) -> Any:
    """Return a part of one of a batch's values: a list, a tensor, or a tuple of tensors."""
    if isinstance(value, tuple):
        return type(value)(*(tensor[part] for tensor in value))
    return None if value is None else value[part]


def _joined(values: Sequence[Any]) -> Any:
    """Join what batches have of one value."""
    first = values[0]
    if isinstance(first, tuple):
        return type(first)(*map(torch.cat, zip(*values, strict=True)))
    if isinstance(first, Tensor):
        return torch.cat(list(values))
    return first if first is None else [item for value in values for item in value]


def _outlive_signals(worker: int) -> None:
    """Let a worker continue when its process group is signalled, until its rank has ended.

    Otherwise it dies, and with it the rank that wants to finish its step and write a checkpoint.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def steps(
    people: People, sampler: StepSampler, workers: int, prefetch: int = 2
) -> Iterator[list[Batch]]:
    """Yield this rank's micro-batches of each optimizer step, without end.

    The workers end when the generator is closed, or fails.

    Args:
        people: the samples.
        sampler: draws them.
        workers: processes that read; 0 reads in this one.
        prefetch: steps that each of them is ahead.

    Raises:
        DataError: a file that could be read when the run began cannot be read any more.
    """
    loader = DataLoader(
        people,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=workers,
        persistent_workers=workers > 0,
        prefetch_factor=prefetch if workers else None,
        worker_init_fn=_outlive_signals,
    )
    batches: Any = iter(loader)
    try:
        for batch in batches:
            yield batch.split(sampler.batch_size)
    except DataError as error:
        # A worker's error comes with its traceback; the last line says what is wrong.
        raise DataError(str(error).strip().rpartition("DataError: ")[2]) from None
    finally:
        # Left to the process's exit, which waits for them after a signal that they ignore, they
        # would keep it for ever. An error's traceback keeps them from being collected before.
        if workers:
            batches._shutdown_workers()
