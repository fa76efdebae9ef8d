"""What a training step costs in each mode, next to plain fine-tuning.

python -m fairhuman.planning.step_benchmark

A UNet of random weights and random latents, through the trainer's own engine and balancers. Under
`deepspeed --module fairhuman.planning.step_benchmark` the figures are those of rank 0 of several.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fairhuman.common.exit_code import exit_code
from fairhuman.common.files import write_text
from fairhuman.common.quiet import quiet
from fairhuman.config import Config, load_config
from fairhuman.fairness import ops
from fairhuman.kernels.bench.report import device_name
from fairhuman.kernels.bench.timing import PeakMemory
from fairhuman.models.formats.base import UNET
from fairhuman.models.recompute import recompute_blocks
from fairhuman.planning.host_work import HostWork, host_work, operations, product_rate
from fairhuman.planning.traffic import Traffic
from fairhuman.training.balancers.base import Sensitivity
from fairhuman.training.objectives import RegionObjectives
from fairhuman.training.step import make_balancer
from fairhuman.zero.engine import make_engine
from fairhuman.zero.process_group import init_distributed
from fairhuman.zero.protocol import Engine

PLAIN = "global"
MODES = (PLAIN, "sum", "exact", "amortized", "sketch")
WARM_UP = 2

# What differs from SDXL's UNet: nothing, and in one of its shape that two CPU cores can train.
UNETS: dict[str, dict[str, Any]] = {
    "sdxl": UNET,
    "small": {
        "sample_size": 32,
        "block_out_channels": (64, 128, 256),
        "transformer_layers_per_block": (1, 1, 2),
        "attention_head_dim": (2, 4, 8),
        "cross_attention_dim": 256,
        "addition_time_embed_dim": 32,
        "projection_class_embeddings_input_dim": 512,
    },
}


@dataclass(frozen=True)
class Cost:
    """One mode. Times in seconds, of rank 0."""

    mode: str
    step: float
    """Mean time of a step: some modes do more in some steps than in others."""
    times_plain: float
    """Over that of plain fine-tuning in the same run."""
    parts: dict[str, float]
    """Mean time of each part per step, in steps that wait for the device around each."""
    peak_bytes: int | None
    """Memory above the model and the engine, at its highest."""
    sent_bytes: float
    """What this rank sends in one step, as a ring would; see `Traffic`."""
    parameters: int
    host: HostWork | None
    """On a CUDA device, where it was counted."""
    operations_per_second: float | None
    """Where they were counted."""
    of_product: float | None
    """Their share of what a large matrix product reaches here."""


def costs(
    size: str,
    modes: Sequence[str],
    device: torch.device,
    *,
    steps: int,
    batch: int,
    accumulation: int,
    checkpointing: bool,
    deepspeed: str,
    counts: bool = True,
) -> Iterator[Cost]:
    """Yield the cost of each mode; plain fine-tuning comes first, whatever `modes` says.

    Without `counts` neither operations nor the host's launches and waits are counted.
    """
    plain = None
    product = None
    if counts:
        product = product_rate(device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    # What runs first in a process pays for its memory and its threads: it is not the one measured.
    first = _config(PLAIN, device, batch, accumulation, 1, deepspeed)
    _cost(first, size, device, 1, checkpointing, None)
    for mode in [PLAIN, *(mode for mode in modes if mode != PLAIN)]:
        config = _config(mode, device, batch, accumulation, steps, deepspeed)
        one = _cost(config, size, device, steps, checkpointing, product)
        plain = plain or one.step
        yield replace(one, times_plain=one.step / plain)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _config(
    mode: str, device: torch.device, batch: int, accumulation: int, steps: int, deepspeed: str
) -> Config:
    tree = {
        "model": {"pretrained": "random weights"},
        "data": {"root": "random latents", "resolution": 1024},
        "fairness": {"mode": mode},
        "optimizer": {"name": "AdamW8bit", "lr": 1e-5},
        "train": {
            "output_dir": "nowhere",
            "steps": 3 * steps + WARM_UP + 2,
            "batch_size": batch,
            "gradient_accumulation": accumulation,
            "precision": "bf16" if device.type == "cuda" else "fp32",
        },
        "deepspeed": deepspeed,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.yaml"
        path.write_text(json.dumps(tree), encoding="utf-8")  # JSON is YAML
        return load_config(path)


def _cost(
    config: Config,
    size: str,
    device: torch.device,
    steps: int,
    checkpointing: bool,
    product: float | None,
) -> Cost:
    """Return one mode's cost; operations and launches are counted where `product` is known."""
    unet = _unet(size, device, config.train.precision, checkpointing)
    parameters = sum(p.numel() for p in unet.parameters())  # ZeRO-3 is to leave none of them
    engine = make_engine(config, unet)
    balancer = make_balancer(config, engine)
    take_step = _Step(config, engine, balancer, UNETS[size], device)
    for _ in range(WARM_UP):
        take_step()
    with PeakMemory() as peak:
        whole = [_seconds(take_step, device) for _ in range(steps)]
    parts: defaultdict[str, list[float]] = defaultdict(list)
    with _timed_parts(take_step, parts, device):
        for _ in range(steps):
            take_step()
    with Traffic() as traffic:
        take_step()
    host, rate, share = None, None, None
    if product:
        host = host_work(take_step, device)
        # Of all steps where some do more than others.
        taken = steps if config.fairness.every > 1 else 1
        done = sum(operations(take_step) for _ in range(taken)) / taken
        rate = done / fmean(whole)
        share = rate / product
    engine.destroy()
    return Cost(
        mode=config.fairness.mode,
        step=fmean(whole),
        times_plain=1.0,
        parts={name: sum(times) / steps for name, times in parts.items()},
        peak_bytes=peak.bytes,
        sent_bytes=traffic.bytes,
        parameters=parameters,
        host=host,
        operations_per_second=rate,
        of_product=share,
    )


def _unet(size: str, device: torch.device, precision: str, checkpointing: bool) -> Any:
    from diffusers import UNet2DConditionModel

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    torch.manual_seed(0)
    with torch.device(device):
        unet = UNet2DConditionModel(**{**UNET, **UNETS[size]})
    if checkpointing:
        recompute_blocks(unet)
    return unet.to(dtype)


class _Step:
    """One optimizer step on random latents, with a face and a hand in every sample."""

    def __init__(
        self,
        config: Config,
        engine: Engine,
        balancer: Any,
        unet: dict[str, Any],
        device: torch.device,
    ) -> None:
        self.engine = engine
        self.balancer = balancer
        self.micro_batches = config.train.gradient_accumulation
        self.objectives = RegionObjectives(["face", "hand"], "image", {})
        batch, side = config.train.batch_size, unet["sample_size"]
        dtype = next(engine.module.parameters()).dtype
        rng = torch.Generator(device).manual_seed(dist.get_rank())

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=rng, device=device).to(dtype)

        self.noisy = random(batch, 4, side, side)
        self.target = random(batch, 4, side, side)
        self.prompt = random(batch, 77, unet["cross_attention_dim"])
        pooled = unet["projection_class_embeddings_input_dim"] - 6 * unet["addition_time_embed_dim"]
        self.added = {
            "text_embeds": random(batch, pooled),
            "time_ids": torch.zeros(batch, 6, device=device),
        }
        self.timesteps = torch.full((batch,), 500, device=device)
        self.masks = torch.zeros(batch, 2, side, side, device=device)
        self.masks[:, 0, : side // 4, : side // 4] = 1.0
        self.masks[:, 1, side // 2 : side // 2 + side // 8, : side // 8] = 1.0
        self.area = RegionObjectives.areas(self.masks)

    def __call__(self) -> None:
        self.balancer.start([True] * 3, self.micro_batches)
        for _ in range(self.balancer.passes * self.micro_batches):
            prediction = self.forward()
            sensitivity = self.sensitivity(prediction) if self.balancer.measures else None
            self.balancer.backward(self.losses(prediction), sensitivity)
        self.balancer.step()

    def forward(self) -> Tensor:
        prediction: Tensor = self.balancer.model(
            self.noisy,
            self.timesteps,
            encoder_hidden_states=self.prompt,
            added_cond_kwargs=self.added,
            return_dict=False,
        )[0]
        return prediction

    def sensitivity(self, prediction: Tensor) -> Sensitivity:
        squares = self.objectives.sensitivity(prediction, self.target, self.masks, None, self.area)
        share = torch.full_like(squares, 1.0 / (self.micro_batches * dist.get_world_size()))
        return Sensitivity(squares, share)

    def losses(self, prediction: Tensor) -> Tensor:
        return self.objectives.losses(prediction, self.target, self.masks, None, self.area)


@contextmanager
def _timed_parts(
    step: _Step, parts: defaultdict[str, list[float]], device: torch.device
) -> Iterator[None]:
    """Time the calls that a step is made of, waiting for the device before and after each."""
    places: list[tuple[Any, str, str]] = [
        (step, "forward", "forward"),
        (step, "losses", "losses"),
        (step, "sensitivity", "sensitivity"),
    ]
    exact = getattr(step.balancer, "exact", step.balancer)  # what amortized refreshes with
    if gradients := getattr(exact, "gradients", None):
        places += [(gradients, "backward", "backward"), (gradients, "gram", "gram")]
    else:
        places.append((step.engine, "backward", "backward"))
    places += [(ops, "solve_mpd", "solve"), (ops, "combine", "combine")]
    places.append((step.engine, "step", "optimizer"))
    originals = [(owner, name, vars(owner).get(name)) for owner, name, _ in places]
    for owner, name, part in places:
        setattr(owner, name, _timed(getattr(owner, name), parts[part], device))
    try:
        yield
    finally:
        for owner, name, original in originals:
            if original is None:
                delattr(owner, name)
            else:
                setattr(owner, name, original)


def _timed(
    function: Callable[..., Any], times: list[float], device: torch.device
) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        _wait(device)
        began = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            _wait(device)
            times.append(time.perf_counter() - began)

    return run


def _seconds(run: Callable[[], None], device: torch.device) -> float:
    times: list[float] = []
    _timed(run, times, device)()
    return times[0]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def as_markdown(table: Sequence[Cost]) -> str:
    """Return one line per mode."""
    names = list(dict.fromkeys(name for cost in table for name in cost.parts))
    lines = [
        f"| mode | step | plain = 1 | {' | '.join(names)} | memory | sent | TFLOP/s "
        "| of a product |",
        "| --- " * (7 + len(names)) + "|",
    ]
    for cost in table:
        parts = [f"{1e3 * cost.parts[n]:.3g} ms" if cost.parts.get(n) else "" for n in names]
        memory = "" if cost.peak_bytes is None else f"{cost.peak_bytes / 2**20:.0f} MiB"
        rate = "" if not cost.operations_per_second else f"{cost.operations_per_second / 1e12:.3g}"
        share = "" if cost.of_product is None else f"{cost.of_product:.0%}"
        lines.append(
            f"| {cost.mode} | {1e3 * cost.step:.4g} ms | {cost.times_plain:.2f} "
            f"| {' | '.join(parts)} | {memory} | {cost.sent_bytes / 2**20:.4g} MiB "
            f"| {rate} | {share} |"
        )
    return "\n".join(lines)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser, of which the CLI reference is made too."""
    parser = argparse.ArgumentParser(
        prog="python -m fairhuman.planning.step_benchmark",
        description=(__doc__ or "").partition("\n")[0],
    )
    parser.add_argument(
        "--size", choices=UNETS, help="size of the UNet; default: sdxl on a GPU, else small"
    )
    parser.add_argument(
        "--mode", action="append", help="a mode to time, may be repeated; default: all"
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=5,
        help="timed steps of each mode; amortized refreshes every fifth",
    )
    parser.add_argument("--batch", type=int, default=1, help="samples per micro-batch")
    parser.add_argument("--accumulation", type=int, default=1, help="micro-batches per step")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations")
    parser.add_argument(
        "--no-counts",
        dest="counts",
        action="store_false",
        help="times and memory alone: to count operations and launches takes longer than all else",
    )
    parser.add_argument("--deepspeed", default="zero2", help="the DeepSpeed config")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns 2 where the config cannot run."""
    args = make_parser().parse_args(argv)
    quiet()
    return exit_code(lambda: _measure(args), f"--json {args.json}")


def _measure(args: argparse.Namespace) -> int:
    """Measure what the command line asks for, and print it."""
    device = init_distributed()
    size = args.size or ("sdxl" if device.type == "cuda" else "small")
    table: list[Cost] = []
    for cost in costs(
        size,
        args.mode or MODES,
        device,
        steps=args.steps,
        batch=args.batch,
        accumulation=args.accumulation,
        checkpointing=args.checkpointing,
        deepspeed=args.deepspeed,
        counts=args.counts,
    ):
        table.append(cost)
        if dist.get_rank() == 0:
            print(f"{cost.mode}: {1e3 * cost.step:.4g} ms", file=sys.stderr, flush=True)
            if args.json:  # at once: what follows can take minutes, or fail
                write_text(args.json, json.dumps([asdict(one) for one in table], indent=2))
    if dist.get_rank() == 0:
        print(
            f"{size}: {table[0].parameters / 1e6:.0f} million parameters, "
            f"{dist.get_world_size()} x {device_name(device)}\n\n{as_markdown(table)}"
        )
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
