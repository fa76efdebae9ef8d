"""A run's parts, built in the order in which mistakes are cheapest to find."""

from __future__ import annotations

import functools
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from fairhuman import checkpoint
from fairhuman.checkpoint import Progress
from fairhuman.config import Config
from fairhuman.data import dataset
from fairhuman.data.dataset import People
from fairhuman.data.order import StepSampler
from fairhuman.data.records import Entry, Problem, Record, check_entries, load_records
from fairhuman.engine import check_engine, gathered, make_engine
from fairhuman.log import METRICS, Log
from fairhuman.models.sdxl import SDXL
from fairhuman.pictures import draw, grid
from fairhuman.runtime import Stop, on_rank0
from fairhuman.step import Denoising, TrainingStep, make_balancer
from fairhuman.validation import Validation, hold_out

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FINAL = "final"
SAMPLES = "samples"


class Run:
    """Everything a training loop needs; the same calls on every rank."""

    def __init__(self, config: Config, device: torch.device) -> None:
        train = config.train
        self.config = config
        self.device = device
        self.output = Path(train.output_dir)
        self.first = dist.get_rank() == 0
        self.progress = Progress()
        check_engine(config)
        found = on_rank0(functools.partial(checkpoint.find, self.output, train.resume))
        if found:
            self.progress = checkpoint.read_progress(found, dist.get_world_size())
        records, left_out = load_records(
            Path(config.data.root),
            config.objectives.regions,
            unannotated=config.data.unannotated,
            columns=config.data.columns,
            on_error=config.data.on_error,
            check=_check_shared,
        )
        trained, held_out = hold_out(records, config.data.validation, train.seed)

        sdxl = SDXL.load(config.model, DTYPES[train.precision], device)
        sdxl.unet.train()
        self.sdxl = sdxl
        self.engine = make_engine(config, sdxl.unet)
        if found:
            checkpoint.load(self.engine, found)
        denoising = Denoising(sdxl, config, device)
        self.step = TrainingStep(self.engine, denoising, make_balancer(config, self.engine))
        self.validation = Validation(held_out, denoising, config) if held_out else None
        self.names = denoising.objectives.names
        self.prompts = list(train.sample_prompts) or _captions(trained)

        self.global_batch = train.batch_size * train.gradient_accumulation * dist.get_world_size()
        self.count = len(trained)
        people = People(trained, config.objectives.regions, config.data, train.seed, sdxl.cell)
        sampler = StepSampler(
            len(trained),
            train.seed,
            batch_size=train.batch_size,
            micro_batches=train.gradient_accumulation,
            rank=dist.get_rank(),
            ranks=dist.get_world_size(),
            seen=self.progress.samples_seen,
        )
        self.batches = dataset.steps(people, sampler, config.data.workers)
        on_rank0(functools.partial(_start_output, self.output, config))
        self.log = (
            Log(self.output, train.steps, self.progress.step, self.names) if self.first else None
        )
        self._report_start(left_out, found)

    def due(self, every: int, step: int) -> bool:
        """Return whether something that comes every so many steps, and at the end, is due."""
        return step == self.config.train.steps or (every > 0 and step % every == 0)

    def write(self, record: dict[str, Any], progress: Progress, seconds: float) -> None:
        """Log a step, with the validation and the samples that are due after it."""
        train = self.config.train
        step = progress.step
        if self.validation and train.validate_every and self.due(train.validate_every, step):
            # Gathered, for ranks may hold unlike numbers of batches: no collectives in between.
            with gathered(self.engine):
                losses = self._quietly(functools.partial(self.validation, self.engine.module))
            for name, loss in zip(self.names, losses, strict=True):
                record[f"val/loss/{name}"] = loss
        if self.log:
            self.log.write(
                {
                    "step": step,
                    "epoch": progress.samples_seen / self.count,
                    **record,
                    "skipped": progress.skipped,
                    "samples_per_s": self.global_batch / seconds,
                    "step_time_s": seconds,
                    "memory_gib": _peak_memory_gib(self.device),
                }
            )
        if train.sample_every and self.due(train.sample_every, step):
            self._draw_samples(step)

    def finish(self, progress: Progress, stop: Stop) -> None:
        """Write OUT/final and say where to look, or how to go on."""
        done = progress.step >= self.config.train.steps
        if done:
            with gathered(self.engine):
                on_rank0(functools.partial(self.sdxl.save, self.output / FINAL))
        if self.log:
            self.log.close()
            print("\n".join(_where_to_look(self.output, done, progress, stop)))
        dist.barrier()
        dist.destroy_process_group()

    def lr(self) -> float:
        """Return the learning rate of the step to come."""
        return float(self.engine.get_lr()[0])

    def _quietly(self, work: Any) -> Any:
        """Do some work with the UNet in evaluation mode."""
        self.sdxl.unet.eval()
        try:
            return work()
        finally:
            self.sdxl.unet.train()

    def _draw_samples(self, step: int) -> None:
        """Draw the fixed prompts on rank 0; the others wait."""
        with gathered(self.engine):
            if self.first:
                self._save_samples(step)
            dist.barrier()

    def _save_samples(self, step: int) -> None:
        pictures = self._quietly(
            lambda: draw(
                self.sdxl.pipeline,
                self.prompts,
                seed=self.config.train.seed,
                size=self.config.data.resolution,
                guidance=self.config.train.sample_guidance,
            )
        )
        sheet = grid(pictures)
        sheet.save(self.output / SAMPLES / f"step-{step:08d}.png")
        if self.log:
            self.log.picture("samples", np.asarray(sheet), step)

    def _report_start(self, left_out: Sequence[Problem], found: Path | None) -> None:
        if not self.log:
            return
        for problem in left_out:
            self.log.say(f"left out: {problem}")
        if left_out:
            self.log.say(f"{len(left_out)} samples left out, {self.count} trained on")
        if found:
            self.log.say(f"resumed from {found} at step {self.progress.step}")


def _check_shared(entries: Sequence[Entry]) -> list[Record | Problem]:
    """Open the files of the data set, each on one rank, and tell all ranks."""
    ranks = dist.get_world_size()
    parts: list[list[Record | Problem]] = [[] for _ in range(ranks)]
    dist.all_gather_object(parts, check_entries(entries[dist.get_rank() :: ranks]))
    merged: list[Record | Problem] = []
    for index in range(len(entries)):
        merged.append(parts[index % ranks][index // ranks])
    return merged


def _start_output(output: Path, config: Config) -> None:
    (output / SAMPLES).mkdir(parents=True, exist_ok=True)
    config.save(output / "config.yaml")


def _captions(records: Sequence[Record], count: int = 4) -> list[str]:
    """Return captions from all over the data set."""
    places = np.linspace(0, len(records) - 1, min(count, len(records))).astype(int)
    return [records[place].text for place in places]


def _where_to_look(output: Path, done: bool, progress: Progress, stop: Stop) -> list[str]:
    if not done:
        return [
            f"Stopped after step {progress.step} ({stop.reason or 'another rank was told'}); the "
            "checkpoint is written.",
            "Go on with the same command and train.resume=auto",
        ]
    return [
        f"Done: {progress.step} steps.",
        f"  the model       {output / FINAL}   (diffusers; `fairhuman generate --model …`)",
        f"  the pictures    {output / SAMPLES}",
        f"  the numbers     {output / METRICS}, or: tensorboard --logdir {output}",
    ]


def _peak_memory_gib(device: torch.device) -> float:
    """Return the most memory this rank has used: the GPU's, or the process's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
