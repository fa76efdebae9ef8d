"""What a data set of any size costs: disk, files, the start, memory, bytes per step.

python -m fairhuman.planning.data_costs --images 1000000 1000000000

Sizes follow from formulas. What a computer takes is measured; the defaults are this project's (see
`Measured`), and each may be replaced by yours.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields

from fairhuman.data.cache_shards import INDEX_BYTES, SHARD_BYTES
from fairhuman.data.keys import BYTES
from fairhuman.planning.plan import SDXL_PARAMETERS, Plan

GB, TB = 1e9, 1e12
PIXELS = 1024 * 1024
"""Of a training image."""
LATENT_CHANNELS, CELL = 4, 8
TOKENS, WIDTH, POOLED = 77, 768 + 1280, 1280
"""Of SDXL's two text encoders."""


@dataclass(frozen=True)
class Measured:
    """What a machine takes; two x86-64 cores of an AMD EPYC, 2026-11-26."""

    image_bytes: float = 0.5e6
    """Of a stored image: a JPEG of one megapixel. An assumption, not measured."""
    decode_s: float = 0.0066
    """CPU seconds to open, decode and convert it; 0.085 for one of 12 megapixels."""
    index_bytes: float = 430.0
    """On disk per image, with captions of 40 words (`start_benchmark`)."""
    start_s: float = 12e-6
    """Per image, of a start that finds everything in the index (`start_benchmark`)."""
    memory_bytes: float = 90.0
    """Per image, that each rank keeps (`start_benchmark`)."""
    disk_bytes_per_s: float = 1e9
    """That one rank writes, digests included. An assumption: `save_benchmark` measures yours."""


@dataclass(frozen=True)
class DataCosts:
    """The costs of N images. Bytes and seconds.

    Args:
        images: N.
        measured: of the machines.
        ranks: all of them.
        cores: of all machines together.
        global_batch: samples per step.
    """

    images: float
    measured: Measured = Measured()
    ranks: int = 8
    cores: int = 64
    global_batch: int = 64

    @staticmethod
    def latent_bytes() -> int:
        """Return what a cached posterior takes: mean and deviation in fp16."""
        return 2 * 2 * LATENT_CHANNELS * PIXELS // CELL**2

    @staticmethod
    def text_bytes() -> int:
        """Return what an encoded caption takes, in bf16."""
        return 2 * (TOKENS * WIDTH + POOLED)

    def cache_bytes(self) -> float:
        """Return what data.cache takes, with one crop and one caption per image."""
        return self.images * (self.latent_bytes() + self.text_bytes())

    def cache_shards(self) -> int:
        """Return how many files that is at least: shards of latents and of captions."""
        of_a_kind = (self.latent_bytes(), self.text_bytes())
        return sum(math.ceil(self.images * one / SHARD_BYTES) for one in of_a_kind)

    def cache_memory(self) -> float:
        """Return what each rank keeps of where they are, and of the images' digests."""
        return self.images * (2 * INDEX_BYTES + 2 * BYTES)

    def check_s(self) -> float:
        """Return how long the first check takes, which decodes every image, on all cores."""
        return self.images * self.measured.decode_s / self.cores

    def start_s(self) -> float:
        """Return how long a later start takes. Ranks of a machine share the work."""
        return self.images * self.measured.start_s

    def step_bytes(self, cached: bool) -> float:
        """Return what all ranks read for a step."""
        one = self.latent_bytes() + self.text_bytes() if cached else self.measured.image_bytes
        return self.global_batch * one

    def checkpoint_bytes(self) -> float:
        """Return the size of a checkpoint of SDXL's whole UNet, whatever the data."""
        plan = Plan(SDXL_PARAMETERS, self.ranks, 2, "exact")
        return plan.weight_bytes() + self.ranks * (plan.master_bytes() + plan.moment_bytes())

    def checkpoint_s(self) -> float:
        """Return how long its writing takes, while training goes on; the weights are rank 0's."""
        plan = Plan(SDXL_PARAMETERS, self.ranks, 2, "exact")
        own = plan.weight_bytes() + plan.master_bytes() + plan.moment_bytes()
        return own / self.measured.disk_bytes_per_s

    def rows(self) -> list[tuple[str, str]]:
        """Return what there is to say, by name."""
        per_image = self.measured
        return [
            ("images on disk", _bytes(self.images * per_image.image_bytes)),
            ("index on disk", _bytes(self.images * per_image.index_bytes)),
            (
                "first check, every image decoded",
                f"{_time(self.check_s())} on {self.cores} cores",
            ),
            ("later starts", _time(self.start_s())),
            ("memory of a rank for the records", _bytes(self.images * per_image.memory_bytes)),
            ("order of an epoch, in each rank", _bytes(8.0 * self.images)),
            ("cache on disk", _bytes(self.cache_bytes())),
            ("shards in the cache, at least", f"{self.cache_shards():,}"),
            ("memory of a rank for the cache", _bytes(self.cache_memory())),
            (
                f"read per step of {self.global_batch}, images",
                _bytes(self.step_bytes(cached=False)),
            ),
            (f"read per step of {self.global_batch}, cache", _bytes(self.step_bytes(cached=True))),
            ("steps of an epoch", f"{self.images / self.global_batch:,.0f}"),
            ("checkpoint of SDXL's UNet", _bytes(self.checkpoint_bytes())),
            (f"its writing by {self.ranks} ranks", _time(self.checkpoint_s())),
        ]


def table(costs: Sequence[DataCosts]) -> str:
    """Return the costs of several sizes side by side, in Markdown."""
    header = " | ".join(f"{one.images:,.0f} images" for one in costs)
    lines = [f"| | {header} |", "| --- |" + " ---: |" * len(costs)]
    for parts in zip(*(one.rows() for one in costs), strict=True):
        lines.append(f"| {parts[0][0]} | " + " | ".join(value for _, value in parts) + " |")
    return "\n".join(lines)


def _bytes(count: float) -> str:
    for unit, size in (("PB", 1e15), ("TB", TB), ("GB", GB), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"


def _time(seconds: float) -> str:
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m fairhuman.planning.data_costs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--images", type=float, nargs="+", default=[1e6, 1e9])
    for name in ("ranks", "cores", "global_batch"):
        default = DataCosts.__dataclass_fields__[name].default
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    for field in fields(Measured):
        name = f"--{field.name.replace('_', '-')}"
        parser.add_argument(name, type=float, default=field.default)
    args = parser.parse_args(argv)
    measured = Measured(**{field.name: getattr(args, field.name) for field in fields(Measured)})
    print(
        table(
            [
                DataCosts(images, measured, args.ranks, args.cores, args.global_batch)
                for images in args.images
            ]
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
