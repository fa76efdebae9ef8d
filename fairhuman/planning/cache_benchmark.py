"""How long a cache of many entries takes to open, and one entry to read.

python -m fairhuman.planning.cache_benchmark --entries 1000000

The shards that are opened have the sizes, keys and tables of SDXL's latents, but holes in place of
the numbers. The entries that are read are real ones, of random numbers: from shards, and from a
file for each entry as `safetensors` writes it. Both are in the system's cache when they are read.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch

from fairhuman.data.cache import encode
from fairhuman.data.cache_shards import (
    SHARD_BYTES,
    SUFFIX,
    TABLE,
    Shards,
    read_index,
    tail_of,
    write_shards,
)
from fairhuman.data.keys import BYTES
from fairhuman.models.encoded import Posterior
from fairhuman.planning.data_costs import LATENT_CHANNELS, PIXELS, DataCosts

TIMES = 3
"""The best of these is told."""
MB = 1e6


class _Took(NamedTuple):
    seconds: float
    cpu: float
    """Of all threads."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m fairhuman.planning.cache_benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--entries", type=int, default=1_000_000, help="to open")
    parser.add_argument("--read", type=int, default=1000, help="entries to read")
    parser.add_argument("--folder", type=Path, help="where they are made; default: /tmp")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        many, few = Path(folder) / "many", Path(folder) / "few"
        count = _make(many, args.entries)
        took = _best(lambda: read_index(many))
        index = read_index(many)
        size = index.keys.nbytes + index.places.nbytes
        print(
            f"{args.entries:,} entries in {count:,} shards: {size / MB:.0f} MB, opened in "
            f"{took.seconds:.2f} s ({took.cpu:.2f} of the CPU)"
        )
        for name, read in zip(("shards", "a file each"), _readers(few, args.read), strict=True):
            took = _best(read)
            each, cpu = (1e6 * seconds / args.read for seconds in took)
            print(f"{name}: {each:.0f} us to read an entry ({cpu:.0f} of the CPU)")


def _make(folder: Path, entries: int) -> int:
    """Make shards of so many latents, without their numbers; return how many shards."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    length = DataCosts.latent_bytes()
    each = -(-SHARD_BYTES // length)
    starts = range(0, entries, each)
    for start in starts:
        table = np.empty(min(each, entries - start), TABLE)
        table["key"] = np.frombuffer(draw.bytes(BYTES * len(table)), TABLE["key"])
        table["offset"], table["length"] = length * np.arange(len(table)), length
        with (folder / f"{start:016x}{SUFFIX}").open("wb") as file:
            file.seek(length * len(table))
            file.write(tail_of(table))
    return len(starts)


def _readers(folder: Path, entries: int) -> list[Callable[[], Any]]:
    """Make entries; return what reads all of them in a random order from each layout."""
    random_order = random.Random(0)
    keys = [random_order.randbytes(BYTES) for _ in range(entries)]
    side = int(PIXELS**0.5) // 8
    latents = torch.randn(2, 1, LATENT_CHANNELS, side, side).to(torch.float16)
    content = encode(Posterior(*latents))
    shards = Shards(folder)
    shards.index = write_shards(folder, ((key, content) for key in keys))
    files = [folder / key.hex()[:2] / f"{key.hex()}.safetensors" for key in keys]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
    order = random_order.sample(range(entries), entries)
    return [
        lambda: [safetensors.torch.load(shards.read(keys[place]).content) for place in order],
        lambda: [safetensors.torch.load_file(files[place]) for place in order],
    ]


def _best(work: Callable[[], Any]) -> _Took:
    """Return what some work takes; CPU time tells what waiting for other processes adds."""
    found = []
    for _ in range(TIMES):
        began, used = time.perf_counter(), time.process_time()
        work()
        found.append(_Took(time.perf_counter() - began, time.process_time() - used))
    return min(found)


if __name__ == "__main__":
    main()
