"""How long training waits for a checkpoint, written at once and in the background.

python -m fairhuman.planning.save_benchmark --parameters 1000000000 --out FOLDER

Layers of random weights under the trainer's own engine, ZeRO-2 with AdamW8bit, and its checkpoints,
on the disk of FOLDER. Under `deepspeed --module` the figures are those of rank 0 of several. Both
ways take turns; a background checkpoint is published as in training, at the end of the first step
in which no rank writes any more.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist
from torch import nn

from fairhuman.checkpointing import Saver
from fairhuman.checkpointing.manifest import Progress
from fairhuman.common.distributed import on_rank0
from fairhuman.common.exit_code import exit_code
from fairhuman.common.quiet import quiet
from fairhuman.common.units import GIB
from fairhuman.config import Config
from fairhuman.training.stop import Stop
from fairhuman.zero.engine import make_engine
from fairhuman.zero.process_group import init_distributed
from fairhuman.zero.protocol import Engine

WIDTH = 4096
"""Of a layer: 16.8 million parameters."""


class _Trained:
    """An engine with moments, and a clock."""

    def __init__(self, parameters: int, device: torch.device) -> None:
        layers = max(1, round(parameters / WIDTH**2))
        model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers)))
        self.engine: Engine = make_engine(_config(), model.to(device, torch.bfloat16))
        self.batch = torch.randn(1, WIDTH, device=device, dtype=torch.bfloat16)

    def step(self) -> float:
        """Take a step; return how long it took, in seconds."""

        def work() -> None:
            self.engine.set_gradient_accumulation_boundary(True)
            self.engine.backward(self.engine(self.batch).float().square().mean())
            self.engine.step()

        return self.timed(work)

    def timed(self, work: Callable[[], object]) -> float:
        """Return how long some work takes on all ranks, in seconds."""
        dist.barrier()
        started = time.perf_counter()
        work()
        if self.engine.device.type == "cuda":
            torch.cuda.synchronize()
        dist.barrier()
        return time.perf_counter() - started


def _config() -> Config:
    return Config.model_validate(
        {
            "model": {"pretrained": "random weights"},
            "data": {"root": "none"},
            "optimizer": {"name": "AdamW8bit", "lr": 1e-6},
            "train": {"output_dir": "none", "steps": 1000, "precision": "bf16"},
            "deepspeed": {"zero_optimization": {"stage": 2}},
        }
    )


def measure(
    parameters: int, rounds: int, out: Path, device: torch.device
) -> dict[str, list[float]]:
    """Return what each round waited, in seconds, by what for."""
    trained, stop = _Trained(parameters, device), Stop()
    found: dict[str, list[float]] = {
        name: [] for name in ("step", "at once", "copy", "publish", "step while it is written")
    }
    at_once, background = (Saver(trained.engine, out / name, 1) for name in ("a", "b"))
    trained.step()
    for number in range(rounds):
        progress = Progress(number + 1, number + 1, 0)
        found["step"].append(trained.step())
        found["at once"].append(trained.timed(partial(at_once.save, progress)))
        found["copy"].append(trained.timed(partial(background.save, progress, background=True)))
        while True:
            took = trained.step()
            if not stop.agreed(device, writing=background.writing).writing:
                break
            found["step while it is written"].append(took)
        found["publish"].append(trained.timed(background.publish))
    size = sum(path.stat().st_size for path in (out / "a").rglob("*") if path.is_file())
    if dist.get_rank() == 0:
        _tell(found, size)
    return found


def _tell(found: dict[str, list[float]], size: int) -> None:
    print(f"a checkpoint of {size / GIB:.1f} GiB; seconds, each round's, and their median:")
    for name, values in found.items():
        shown = " ".join(f"{value:.2f}" for value in values)
        print(f"  {name:26} {shown or 'none'}" + (f"   {median(values):.2f}" if values else ""))
    waited = median(found["copy"][1:] or found["copy"]) + median(found["publish"])
    share = waited / median(found["at once"])
    what = "the copy, but the first, and publishing"
    print(f"training waits {waited:.2f} s ({what}): {share:.1%} of at once")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parameters", type=int, default=10**9)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="on the disk to measure; default: /tmp")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # from the launcher
    args = parser.parse_args(argv)

    def work() -> int:
        quiet()
        device = init_distributed()
        out = on_rank0(lambda: Path(tempfile.mkdtemp(dir=args.out)))
        try:
            measure(args.parameters, args.rounds, out, device)
        finally:
            shutil.rmtree(out, ignore_errors=True)
        dist.destroy_process_group()
        return 0

    return exit_code(work, "--out")


if __name__ == "__main__":
    sys.exit(main())
