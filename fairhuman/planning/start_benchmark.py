"""How long a run takes to know its data set, and in how much memory.

python -m fairhuman.planning.start_benchmark --records 1000000 --ranks 2

The rows are made up, and the files are hard links to a few pictures: a start asks for each one's
size and time all the same. The first start reads metadata.jsonl and opens every file, the second
finds all that in the index. With --model, captions are counted too.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fairhuman.common.quiet import quiet
from fairhuman.data.records import METADATA

LINKS = 30_000
"""Names of one picture; file systems allow some ten thousands."""
FOLDER = 10_000
"""Images in a folder."""
TOUCHED = 50_000
"""Records that a worker reads."""
MB = 1e6


def main() -> None:
    """Run the benchmark, or one rank of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the data set is made; default: /tmp")
    parser.add_argument("--model", help="an SDXL, whose tokenizers count the captions' tokens")
    parser.add_argument("--rank-of", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank_of:
        print(json.dumps(_start(args.rank_of, args.model)))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        root = Path(folder)
        _make(root, args.records)
        for start in ("first start", "second start"):
            for rank, found in enumerate(_ranks(root, args.ranks, args.model)):
                told = ", ".join(f"{name} {value:.1f}" for name, value in found.items())
                print(
                    f"{args.records:,} records, {start}, rank {rank} of {args.ranks}: {told}",
                    flush=True,
                )


def _make(root: Path, records: int) -> None:
    """Make a data set: photographs' captions and boxes in length and number."""
    draw = random.Random(0)
    words = ["photograph", "person", "with", "red", "hair", "holding", "cup", "in", "park"]
    shapes = [(64, 96), (96, 64), (80, 80)]
    with (root / METADATA).open("w") as lines:
        for number in range(records):
            folder = root / f"{number // FOLDER:05d}"
            name = f"{folder.name}/{number:08d}.png"
            origin = root / f"{number // LINKS}.png"
            size = shapes[number // LINKS % 3]
            if number % LINKS == 0:
                Image.new("1", size).save(origin)
                os.utime(origin, (0, 0))
            if number % FOLDER == 0:
                folder.mkdir()
            os.link(origin, root / name)
            boxes = [[draw.randrange(40), draw.randrange(40), 20, 22] for _ in range(3)]
            row = {"file_name": name, "text": " ".join(draw.choices(words, k=40))}
            lines.write(json.dumps({**row, "faces": boxes[:1], "hands": boxes[1:]}) + "\n")


def _ranks(root: Path, ranks: int, model: str | None) -> list[dict[str, float]]:
    """Start a run on so many ranks of this machine; return what each measured."""
    command = [sys.executable, "-m", "fairhuman.planning.start_benchmark", "--rank-of", str(root)]
    command += ["--model", model] if model else []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    shared |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    processes = [
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(ranks)
    ]
    told = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit("a rank has failed")
    return [json.loads(text.splitlines()[-1]) for text in told]


def _start(root: Path, model: str | None) -> dict[str, float]:
    quiet()
    from fairhuman.config import Config, Model
    from fairhuman.data.index.tokens import caption_tokens
    from fairhuman.models.families.tokenized import tokenized
    from fairhuman.training.run_data import RunData
    from fairhuman.zero.process_group import init_distributed

    init_distributed()
    config = Config.model_validate(
        {
            "model": {"pretrained": "unused"},
            "data": {"root": str(root), "buckets": True, "validation": 100},
            "train": {"output_dir": "unused", "steps": 1, "batch_size": 1},
            "deepspeed": {"zero_optimization": {"stage": 2}},
        }
    )
    counter = tokenized(Model(pretrained=model)) if model else None
    before = _own()
    with _peak() as peak:
        began = time.perf_counter()
        data = RunData(config)
        known = time.perf_counter()
        if counter:
            caption_tokens(data.usable, counter)
        counted = time.perf_counter()
    after = _own()
    with multiprocessing.get_context("fork").Pool(1) as workers:
        grown = workers.apply(_touch, (data,))
    return {
        "seconds": known - began,
        "seconds for the captions": counted - known,
        "MB kept": (after - before) / MB,
        "MB at most": (peak[0] - before) / MB,
        "MB that a worker adds": grown / MB,
    }


def _touch(data: Any) -> float:
    """Read records as a worker does; return by how much this process grew, in bytes."""
    before = _own()
    for place in np.random.default_rng(0).integers(len(data.trained), size=TOUCHED).tolist():
        data.trained[place]
    return float(_own() - before)


def _own() -> int:
    """Return the bytes that this process has to itself; files that it maps are not among them."""
    kib = re.findall(r"Private_Dirty: *([0-9]+)", Path("/proc/self/smaps_rollup").read_text())
    return int(kib[0]) * 1024


@contextmanager
def _peak() -> Iterator[list[int]]:
    """Watch the memory that is this process's own; the list holds the most, in bytes."""
    found, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            found[0] = max(found[0], _own())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


if __name__ == "__main__":
    main()
