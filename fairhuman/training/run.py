"""A run's parts, built in the order in which mistakes are cheapest to find."""

from __future__ import annotations

import functools
import math
import resource
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from fairhuman import checkpointing
from fairhuman.checkpointing import StartLosses
from fairhuman.checkpointing.manifest import Best, Manifest, Progress
from fairhuman.common.distributed import agreed, on_rank0
from fairhuman.common.errors import ConfigError, OutputError, UserError
from fairhuman.common.files import as_output_error
from fairhuman.common.output_folder import check_cache, check_writable
from fairhuman.common.run_folder import (
    CHECKPOINTS,
    CONFIG,
    FINAL,
    SAMPLES,
    checkpoint_folder,
    export_folder,
)
from fairhuman.common.units import DTYPES, GIB
from fairhuman.config import Config
from fairhuman.data.dataset import Batch
from fairhuman.models.families.protocol import FamilyClass
from fairhuman.models.families.registry import check_model
from fairhuman.models.lora_start import check_start
from fairhuman.models.method import frozen_digest, make_method, save
from fairhuman.models.speed import check_speed, set_up
from fairhuman.report import write_report
from fairhuman.training.balancers.base import Balancer
from fairhuman.training.checkpoint_push import folder_on_hub
from fairhuman.training.closing import closing_lines
from fairhuman.training.denoising import Denoising
from fairhuman.training.disk_space import check_disk, sizes
from fairhuman.training.environment import environment, write_environment
from fairhuman.training.exports import export_due, mark_best_export
from fairhuman.training.held_out import HeldOut
from fairhuman.training.hub_push import HubPush, check_push, upload_command
from fairhuman.training.metrics_log import Log
from fairhuman.training.model_card import write_card
from fairhuman.training.resume import Start, find_start
from fairhuman.training.rule_check import check_rule
from fairhuman.training.run_data import RunData
from fairhuman.training.sample_controls import check_controls
from fairhuman.training.sample_pictures import SamplePictures
from fairhuman.training.step import TrainingStep, make_balancer
from fairhuman.training.stop import Stop
from fairhuman.training.trackers import check_tracking, trackers
from fairhuman.training.validation import Validation
from fairhuman.zero.ema import EMA
from fairhuman.zero.engine import check_engine, gathered, make_engine
from fairhuman.zero.protocol import Engine
from fairhuman.zero.reshard import UNFIT


class Run:
    """Everything a training loop needs; the same calls on every rank.

    Args:
        config: the run's.
        device: of this rank.
        overrides: those of the command line, for the record.
        start: where the run continues; None: to be found.
        family: what `check_before_loading` has returned; None: it is still to be called.
    """

    def __init__(
        self,
        config: Config,
        device: torch.device,
        overrides: Sequence[str] = (),
        start: Start | None = None,
        family: FamilyClass | None = None,
    ) -> None:
        self.device = device
        self.output = Path(config.train.output_dir)
        self.first = dist.get_rank() == 0
        self.failed: Exception | None = None
        """What went wrong on this rank in a step; the step's end tells all."""
        self._told_crowded = False
        self.measured: HeldOut | None = None
        """What was held out, when this process last measured it."""
        family = family or check_before_loading(config)
        start = start or find_start(config)
        self.progress = start.progress
        self.data = RunData(config, self.progress)
        config = self.config = self.data.config
        self._load_model(family, start)
        room = self._check_disk()
        self.pictures = SamplePictures(config, self.family, self.method, self.data.trained)
        self._encode()
        hub = config.train.push_to_hub
        self.hub = HubPush(hub, tqdm.write) if hub and self.first else None
        self._make_step(start)
        self.validation = self._make_validation()
        self.start = self._known_start(start)
        self._reading = self.data.steps(self.family, self.progress)
        self.batches: Iterator[list[Batch]] = self._reading
        self._open_output(overrides)
        self._say_where_from(start, room)

    def _load_model(self, family: FamilyClass, start: Start) -> None:
        """Load the base model, and what is trained of it; it must be the checkpoint's base."""
        config, dtype = self.config, DTYPES[self.config.train.precision]
        check_speed(config.model, dtype, self.device)
        # With a cache the encoders have the device to themselves while it is filled, and what is
        # to be quantized may not fit before.
        on_host = config.data.cache or config.model.quantize
        device = torch.device("cpu") if on_host else self.device
        self.family = agreed(lambda: family.load(config.model, dtype, device))
        self.family.set_noise(config.noise)
        seed = config.train.seed
        self.method = agreed(lambda: make_method(self.family, config.model, seed, self.device))
        if not config.data.cache:
            self.family.move_encoders(self.device)
        self.base = frozen_digest(self.method.module)
        if start.folder and start.manifest:
            checkpointing.check_base(start.folder, start.manifest, self.base, start.setup)
        self.method.module.train()
        set_up(self.method.module, config.model)

    def _check_disk(self) -> list[str]:
        trained, final = sizes(self.method, self.config)
        return on_rank0(lambda: check_disk(self.config, trained, final, self.progress.step))

    def _encode(self) -> None:
        """Fill data.cache, where there is one, after which training needs no encoders."""
        config, say = self.config, _say if self.first else None
        self.data.encode(self.family, self.progress, self.device, say)
        if config.data.cache and config.train.sample_every:
            on_rank0(functools.partial(self.pictures.read_ahead, self.device))

    def _make_step(self, start: Start) -> None:
        """Make the engine, the moving average and the balancer, as they were in the checkpoint."""
        config, folder = self.config, start.folder
        self.engine = make_engine(config, self.method.module)
        # Its contents were compared with their digests when it was chosen.
        self._resharded = bool(folder and checkpointing.load(self.engine, folder, verify=False))
        self.ema, self._averaged_before = _average(self.engine, config.train.ema_decay, folder)
        self.denoising = Denoising(self.family, config, self.device)
        self.names = self.denoising.objectives.names
        self.global_batch = self.data.global_batch
        self.step = TrainingStep(self.engine, self.denoising, make_balancer(config, self.engine))
        self.saver = checkpointing.Saver(
            self.engine,
            self.output,
            config.train.keep_checkpoints,
            ema=self.ema,
            base=self.base,
            config=config,
            uploads=self.hub if config.train.push_checkpoints else None,
        )
        if folder and start.keeps_balance:
            agreed(functools.partial(_restore_balancer, self.step.balancer, folder))

    def _make_validation(self) -> Validation | None:
        if not self.data.held_out:
            return None
        measured = self.data.measured(self.family)
        return Validation(measured, self.denoising, self.config.train.batch_size)

    def _known_start(self, start: Start) -> HeldOut | None:
        """Return what a resumed run's checkpoint knows of the start, if it is still to compare."""
        if not (self.validation and start.losses):
            return None
        found = HeldOut.of(start.losses)
        return found if found and self.validation.is_of(found) else None

    def _open_output(self, overrides: Sequence[str]) -> None:
        """Write the run's first files and open its log, on rank 0."""
        made_with = environment(self.device, overrides, self.progress.step)
        on_rank0(functools.partial(_start_output, self.output, self.config, made_with))
        self.log: Log | None = None
        on_rank0(self._start_log)

    def _start_log(self) -> None:
        start = self.progress.step
        board = trackers(self.output, self.config, start)
        first = _first_line(self.start) if self.start else None
        self.log = Log(self.output, self.config.train.total_steps, start, self.names, board, first)

    def _say_where_from(self, start: Start, room: Sequence[str]) -> None:
        """Print what there is to know of the disk, the data and the checkpoint."""
        if not self.log:
            return
        for line in (*room, *self.data.lines()):
            self.log.say(line)
        folder, manifest = start.folder, start.manifest
        if not (folder and manifest):
            return
        self.log.say(f"resumed from {folder} at step {self.progress.step}")
        for line in start.lines:
            self.log.say(line)
        if start.losses and start.losses.images and self.validation and not self.start:
            self.log.say(
                "changes since the start are no longer logged: what is held out are other images"
            )
        if self._resharded:
            made, setup = manifest.setup, start.setup
            self.log.say(f"resharded: it was made by {made}; this run has {setup}")
        if self.ema and not self._averaged_before:
            self.log.say(f"{folder} holds no moving average: it starts from the weights there")
        self._report_batch(manifest)

    def close(self) -> None:
        """End the workers that read the data."""
        self._reading.close()

    def due(self, every: int, step: int) -> bool:
        """Return whether something that comes every so many steps, and at the end, is due."""
        return step == self.config.train.total_steps or (every > 0 and step % every == 0)

    def save(self, progress: Progress, *, background: bool) -> None:
        """Write a checkpoint; all ranks together. See `checkpointing.Saver`."""
        start = None
        if self.validation:
            start = self.start.stored() if self.start else StartLosses()
        balancer = self.step.balancer.state_dict()
        self.saver.save(progress, balancer, start, background=background)
        if self.saver.crowded and not self._told_crowded:
            self._told_crowded = True
            _say(
                f"rank {dist.get_rank()}: the host has no memory for a copy of the checkpoint, so "
                "training waits while it is written (train.async_save)"
            )

    def write(self, record: dict[str, Any], progress: Progress, seconds: float) -> Progress:
        """Log a step, with the validation, the samples and the export that are due after it.

        Returns:
            The progress, with this step as the best if it is.
        """
        train = self.config.train
        step = progress.step
        if self.validation and train.validate_every and self.due(train.validate_every, step):
            self.measured = self.measure()
            record |= self.measured.means()
            if self.start:
                record |= self.measured.since(self.start)
            progress = replace(progress, best=self._best(record, progress))
        if self.log:
            line = {
                "step": step,
                "epoch": progress.samples_seen / self.data.split.epoch,
                **record,
                "skipped": progress.skipped,
                "samples_per_s": self.global_batch / seconds,
                "step_time_s": seconds,
                "memory_gib": _peak_memory_gib(self.device),
            }
            try:
                self.log.write(line)
            except Exception as error:  # of any kind: all ranks agree on it at the step's end
                self.failed = error
        if train.sample_every and self.due(train.sample_every, step):
            self.draw_samples(step)
        if export_due(train.export_every, progress):
            with self._averaged(), gathered(self.engine):
                on_rank0(functools.partial(self._export, progress))
        return progress

    def begin(self) -> None:
        """Measure what is held out and draw the samples before the first step; a collective.

        They are logged as step 0. Nothing in a resumed run, which keeps what its checkpoint knows.
        """
        train = self.config.train
        if self.progress.step:
            return
        if self.validation and train.validate_every:
            self.start = self.measure()
            if self.log:
                self.log.begin(_first_line(self.start))
        if train.sample_every:
            self.draw_samples(0)

    def measure(self) -> HeldOut:
        """Return the held-out losses; a collective."""
        assert self.validation, "data.validation holds nothing out"
        # Gathered, for ranks may hold unlike numbers of batches: no collectives in between.
        with self._averaged(), gathered(self.engine):
            found: HeldOut = self._quietly(functools.partial(self.validation, self.engine.module))
        return found

    def _best(self, record: dict[str, Any], progress: Progress) -> Best | None:
        """Return the best so far, after this step's measurement; the same on all ranks."""
        metric = self.config.train.keep_best
        if metric is None:
            return None
        # Sums over ranks may round differently on each, and all must save together.
        value = on_rank0(lambda: record[metric])
        best = progress.best
        if value is None or not math.isfinite(value) or (best and value >= best.value):
            return best
        return Best(metric, value, progress.step)

    def finish(self, progress: Progress, stop: Stop, problem: UserError | None = None) -> None:
        """Write OUT/final and say where to look, or how to continue.

        Raises:
            UserError: the `problem` that ends the run, on every rank, when all else is written.
        """
        done = problem is None and progress.step >= self.config.train.total_steps
        if done:
            with self._averaged(), gathered(self.engine):
                on_rank0(functools.partial(self._save_final, progress.step))
        on_rank0(self._close_log)
        on_rank0(functools.partial(write_report, self.output))
        if self.first and problem is None:
            print("\n".join(closing_lines(self.config, done, progress, stop, self._since())))
        dist.barrier()
        dist.destroy_process_group()
        if self.hub:
            self._finish_uploads(self.hub, done, progress, stop)
        if problem:
            raise problem

    def _finish_uploads(self, hub: HubPush, done: bool, progress: Progress, stop: Stop) -> None:
        """Upload OUT/final, which may take minutes; a signal ends the wait.

        Nobody waits for the upload of a run's last checkpoint that was stopped.
        """
        final = self.output / FINAL
        if done:
            hub.push(final, progress.step)
            hub.wait(lambda: stop.reason)
            if stop.reason:
                later = upload_command(hub.name, final)
                print(
                    f"stopped ({stop.reason}) before the upload was done; upload it with: {later}"
                )
        if self.config.train.push_checkpoints:  # what had to stay while it was uploaded
            keep, folders = self.config.train.keep_checkpoints, self.output / CHECKPOINTS
            with as_output_error(folders, "an old checkpoint could not be removed"):
                checkpointing.rotate(folders, keep, progress.best, progress.step, hub.uploading)
        last = checkpoint_folder(self.output, progress.step)
        if hub.is_to_come(last):
            later = upload_command(hub.name, last, folder_on_hub(last))
            print(f"the last checkpoint is not on the hub yet; upload it with: {later}")

    def _since(self) -> dict[str, float | None]:
        """Return the last measured changes since the start, by their keys."""
        return self.measured.since(self.start) if self.measured and self.start else {}

    def _close_log(self) -> None:
        if self.log:
            self.log.close()

    def _export(self, progress: Progress) -> None:
        folder = export_folder(self.output, progress.step)
        self._write_trained(folder, progress.step)
        mark_best_export(self.output, self.config.train.export_every, progress)
        if self.hub:
            self.hub.push(folder, progress.step)

    def _save_final(self, steps: int) -> None:
        final = self.output / FINAL
        try:
            self._write_trained(final, steps)
        except OutputError as error:
            raise OutputError(
                f"{error}; the training is done and its last checkpoint is whole: start again "
                f"with train.resume=auto to write {final} alone"
            ) from error

    def _write_trained(self, folder: Path, steps: int) -> None:
        title = f"{self.output.resolve().name}, {steps} steps"
        save(
            self.method,
            folder,
            title=title,
            architecture=self.family.architecture,
            resolution=self.config.data.resolution,
        )
        prompts = [asked.prompt for asked in self.config.train.sample_prompts]
        write_card(folder, self.config, self.family, steps=steps, prompts=prompts)

    def lr(self) -> float:
        """Return the learning rate of the step to come."""
        return float(self.engine.get_lr()[0])

    def average(self, taken: int) -> None:
        """Take the weights into their moving average, where there is one.

        To be called after each step that was taken, not skipped; `taken` counts them from 1.
        """
        if self.ema:
            self.ema.update(taken)

    def _averaged(self) -> AbstractContextManager[None]:
        """Have the model compute with the moving average of its weights, where there is one."""
        return self.ema.applied() if self.ema else nullcontext()

    def _quietly(self, work: Any) -> Any:
        """Do some work with the model in evaluation mode."""
        self.method.module.eval()
        try:
            return work()
        finally:
            self.method.module.train()

    def draw_samples(self, step: int) -> None:
        """Draw the fixed prompts on rank 0; the others wait. A collective."""
        with self._averaged(), gathered(self.engine):
            on_rank0(functools.partial(self._save_samples, step))

    def _save_samples(self, step: int) -> None:
        sheet = self._quietly(lambda: self.pictures.write(self.output, step, self.device))
        if self.log:
            self.log.picture("samples", np.asarray(sheet), step)

    def _report_batch(self, manifest: Manifest) -> None:
        before = manifest.global_batch
        if self.log and before and before != self.global_batch:
            self.log.say(
                f"the global batch was {before} and is now {self.global_batch} (ranks x "
                "train.batch_size x train.gradient_accumulation); the data continue from sample "
                f"{self.progress.samples_seen}"
            )


def check_before_loading(config: Config) -> FamilyClass:
    """Check all that can be checked before a model, a data set or a checkpoint is read.

    Returns:
        The class of the model's family.
    """
    on_rank0(functools.partial(check_writable, Path(config.train.output_dir)))
    if config.data.cache:
        check_cache(Path(config.data.cache))
    check_engine(config)
    agreed(functools.partial(check_rule, config))
    family = agreed(lambda: check_model(config.model))
    agreed(lambda: family.check_training(config))
    if config.model.method == "lora" and config.model.lora.weights:
        agreed(functools.partial(check_start, config.model.lora))
    on_rank0(functools.partial(check_tracking, config))
    on_rank0(functools.partial(check_push, config))
    agreed(functools.partial(check_controls, config))
    return family


def _average(engine: Engine, decay: float | None, found: Path | None) -> tuple[EMA | None, bool]:
    """Return the moving average, and whether it continues from the checkpoint's."""
    if decay is None:
        return None, False
    ema = EMA(engine, decay)
    if found is None:
        return ema, False
    return ema, agreed(functools.partial(ema.load, found))


def _restore_balancer(balancer: Balancer, found: Path) -> None:
    try:
        balancer.load_state_dict(checkpointing.load_balancer(found) or {})
    except UNFIT as error:
        raise ConfigError(
            f"{found}: the balancer cannot continue from it ({error}); give the objectives and the "
            "fairness.mode of the run that wrote it"
        ) from error


def _first_line(start: HeldOut) -> dict[str, Any]:
    """Return the log's line of step 0."""
    return {"step": 0, "epoch": 0.0, **start.means(), **start.since(start)}


def _say(line: str) -> None:
    print(line, flush=True)


def _start_output(output: Path, config: Config, made_with: dict[str, Any]) -> None:
    with as_output_error(output):
        output.mkdir(parents=True, exist_ok=True)
        if config.train.sample_every:
            (output / SAMPLES).mkdir(parents=True, exist_ok=True)
        config.save(output / CONFIG)
    write_environment(output, made_with)


def _peak_memory_gib(device: torch.device) -> float:
    """Return the most memory this rank has used: the GPU's, or the process's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
