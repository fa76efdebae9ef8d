"""What a run needs on each of N ranks, from its sizes alone: memory and traffic in every mode.

The formulas are held against counted tensors and counted collectives of running engines
(tests/planning/test_planning.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fairhuman.config.schema import OptimizerName
from fairhuman.zero.optimizers import MOMENT_BYTES
from fairhuman.zero.reducer import LARGEST_BUCKET

Mode = Literal[
    "global", "sum", "inverse_loss", "dwa", "uncertainty", "exact", "amortized", "sketch"
]
MODES: tuple[Mode, ...] = ("global", "exact", "amortized", "sketch")

SDXL_PARAMETERS = 2_567_463_684
"""Of the UNet of stabilityai/stable-diffusion-xl-base-1.0."""
FROZEN_BYTES = 2 * (123_060_480 + 694_659_840) + 4 * 83_653_863
"""Its text encoders in 16 bits and its VAE in float32, whole on every rank."""
# Float32 numbers per parameter that a step needs for itself on a GPU: the update of Adafactor and
# its square. The kernels of the others work in place.
_SCRATCH = {"Adafactor": 2}
# Elements: DeepSpeed's defaults of what its engine all-reduces and its ZeRO-3 steps at a time.
_ALL_REDUCED = 500_000_000
_SUB_GROUP = 1_000_000_000


@dataclass(frozen=True)
class Plan:
    """One training set-up. Bytes and numbers are those of one rank."""

    parameters: int
    """Trained ones."""
    ranks: int
    stage: Literal[1, 2, 3]
    mode: Mode = "exact"
    objectives: int = 3
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    optimizer: OptimizerName = "AdamW8bit"
    micro_batches: int = 1
    frozen: int = 0
    """Parameters that the engine holds and does not train: whole on every rank, but for ZeRO-3."""
    quantized: float = 0.0
    """Bytes of a frozen base's weights in 8 or 4 bits: whole on every rank, and on the device."""
    offload_optimizer: bool = False
    offload_parameters: bool = False
    """Under ZeRO-3, trained and frozen ones."""
    overlap: bool = True
    """zero_optimization.overlap_comm: ZeRO-1 and 2 have a second buffer for it."""
    bucket: int = 500_000_000
    """Elements: zero_optimization.reduce_bucket_size."""
    recomputes: bool = False
    """model.gradient_checkpointing."""
    live: int = 1_000_000_000
    """Elements: zero_optimization.stage3_max_live_parameters."""

    def model_bytes(self) -> float:
        """Return what lies on the device between steps: weights, master weights and moments.

        With offload some of it is in the CPU's memory: `host_bytes`.
        """
        weights = self.quantized + (0.0 if self.offload_parameters else self.weight_bytes())
        state = 0.0 if self.offload_optimizer else self.master_bytes() + self.moment_bytes()
        return weights + state + self.sum_bytes()

    def weight_bytes(self) -> float:
        """Return what the weights take that the model computes with: frozen ones, not quantized."""
        return self.whole_weight_bytes() / (self.ranks if self.stage == 3 else 1)

    def whole_weight_bytes(self) -> float:
        """Return what they take whole, as for samples and validation."""
        return float(self._width * (self.parameters + self.frozen))

    def master_bytes(self) -> float:
        """Return what this rank's float32 master weights take."""
        return 4 * self.parameters / self.ranks

    def moment_bytes(self) -> float:
        """Return what the optimizer's moments of these take."""
        return MOMENT_BYTES[self.optimizer] * self.parameters / self.ranks

    def sum_bytes(self) -> float:
        """Return what BF16_Optimizer takes to keep a whole gradient in float32 between steps."""
        return 4.0 * self.parameters if self._whole_sums else 0.0

    def host_bytes(self) -> float:
        """Return what offload puts into the CPU's memory: weights; masters, moments, gradients."""
        held = self.weight_bytes() if self.offload_parameters else 0.0
        if self.offload_optimizer:
            rows = 1 + (self.objectives if self._keeps_rows else 0)
            held += self.master_bytes() + self.moment_bytes()
            held += 4 * rows * self.parameters / self.ranks
        return held

    def gradient_bytes(self) -> float:
        """Return what the gradients take at the end of the backward passes, before the step."""
        if self.offload_optimizer:
            # They are on their way to the CPU's memory, but where ZeRO-1 and 2 add 16-bit
            # gradients up in float32: this rank's part of the sum stays on the device.
            adds_up = self.stage != 3 and self.precision != "fp32"
            return 4 * self.parameters / self.ranks if adds_up else 0.0
        if self.stage == 3:  # has one more, to which DeepSpeed reduces
            return self.row_bytes() + 4 * self.parameters / self.ranks
        if self._keeps_rows:
            return self.row_bytes()
        # BF16_Optimizer averages in its sums, and the model's own gradients are still there.
        return self.parameters * (self._width if self._whole_sums else 4 / self.ranks)

    def row_bytes(self) -> float:
        """Return what of `gradient_bytes` the balancer keeps: a gradient of each objective."""
        if self.offload_optimizer or not self._keeps_rows:
            return 0.0
        return 4 * self.objectives * self.parameters / self.ranks

    def arriving_bytes(self) -> float:
        """Return what the backward passes take above `gradient_bytes` before the last is over.

        That is the newest gradient, on its way into the sum of the ones before it. With one
        micro-batch per step there is no sum before it, and one row less.
        """
        if self.offload_optimizer or self.stage == 3 or self._reduced:
            return 0.0
        row = 4 * self.parameters / self.ranks
        several = self.micro_batches > 1
        rows = row if self._keeps_rows else 0.0
        if self._whole_sums:
            newest = self._width * self.parameters if rows else 0.0
        elif self.stage == 1 and not self.overlap:
            newest = 4 * self.parameters + rows  # whole, until all of it is there
        elif self.stage == 1 and several and not rows:
            newest = 4 * self.parameters - row  # summed whole; this rank's part counts already
        else:
            newest = row if rows or (several and self.precision == "fp32") else 0.0
        return newest - (0.0 if several else rows)

    def working_bytes(self) -> float:
        """Return DeepSpeed's buffers: gradients on their way to the network, gathered weights.

        ZeRO-1 and 2 have one or two buckets during a backward pass, whatever is trained; where
        they are reduced by `zero.reducer`, with the gradients of the next one, or on one rank with
        nothing else. ZeRO-3 keeps one for good, and as many whole weights as `live` lets stay.
        BF16_Optimizer sends its sums from a copy, in the weights' type.
        """
        if self._reduced:
            bucket = min(self.bucket, LARGEST_BUCKET, self.parameters)
            added = 4 * bucket / self.ranks if self.micro_batches > 1 else 0.0
            sent = self._width * bucket * (1 + self.overlap) if self.ranks > 1 else 0.0
            gathered = self._width * bucket
            if self._shares and self._keeps_rows:  # those of all objectives come together
                gathered *= self.objectives
            return gathered + sent + added
        if self.stage == 3:
            return self._width * (self.bucket + min(self.live, self.parameters + self.frozen))
        if self._whole_sums:
            return (4 + self._width) * min(_ALL_REDUCED, self.parameters)
        return self._width * self.bucket * (1 + self.overlap)

    def step_bytes(self) -> float:
        """Return what is needed above the gradients after the backward passes, at its highest.

        First the last gradient while it is added to its row, then the optimizer's copy of the
        gradient and its scratch.
        """
        if self.offload_optimizer:
            return 0.0
        shard = self.parameters / self.ranks
        added = copied = 0.0
        if self.stage == 3:
            copied = min(shard, _SUB_GROUP)
        elif self._reduced:
            return 4 * _SCRATCH.get(self.optimizer, 0) * shard
        elif self._keeps_rows:
            added = shard
        elif self.precision == "fp32":
            copied = shard
        return 4 * max(added, copied + _SCRATCH.get(self.optimizer, 0) * shard)

    def device_bytes(self) -> float:
        """Return all of a rank's device memory but activations and frozen models."""
        return self.model_bytes() + self.gradient_bytes() + self.working_bytes()

    def sent_bytes(self) -> float:
        """Return what a rank sends per optimizer step, as a ring would.

        ZeRO-1 and 2 all-reduce gradients, ZeRO-3 reduce-scatters them; each after every backward
        pass, but for ZeRO-1 in the modes whose weights are fixed, and BF16_Optimizer, which sum
        their micro-batches first. ZeRO-3 fetches
        the weights in every forward and every backward pass: the most that it can be, for what
        `live` lets stay is not fetched again. An `amortized` step is one between two refreshes.
        """
        forwards, backwards = self._passes()
        if self.stage == 3:
            numbers: float = self._width * (forwards + backwards + self._reductions())
        else:
            numbers = self._width * (2 * self._reductions() + 1)
        if self.mode == "exact":
            numbers += 4 * self._whole_sums  # the direction goes to all ranks
        return (self.ranks - 1) / self.ranks * self.parameters * numbers

    def forwards_of_compute(self, every: int = 1) -> float:
        """Return the step's compute in forward passes of one micro-batch; a backward counts 2.

        And what it recomputes counts 1. It is the mean over `every` steps, of which one measures
        (`Fairness.every`).
        """
        plain, exact = 3.0, 1.0 + 2 * self.objectives
        if self.recomputes:
            plain += 1
            exact += 1 if self._shares else self.objectives
        measured = {
            "exact": exact,
            "amortized": exact,
            # Several micro-batches are gone through twice.
            "sketch": exact + plain - 1 + (self.micro_batches > 1),
        }.get(self.mode, plain)
        return (plain + (measured - plain) / every) * self.micro_batches

    @property
    def _width(self) -> int:
        return 4 if self.precision == "fp32" else 2

    @property
    def _whole_sums(self) -> bool:
        """Whether DeepSpeed chooses its BF16_Optimizer."""
        return self.stage == 1 and self.precision == "bf16" and not self.offload_optimizer

    @property
    def _reduced(self) -> bool:
        """Whether gradients are reduced by `zero.reducer`, not by DeepSpeed."""
        solves = self.mode in ("exact", "amortized", "sketch")
        return solves and self.stage != 3 and not self.offload_optimizer and not self._whole_sums

    @property
    def _shares(self) -> bool:
        """Whether a block is recomputed once for all objectives; see `models.recompute`."""
        sketches = self.mode == "sketch" and self.stage != 3
        return self.recomputes and (self._reduced or sketches)

    @property
    def _keeps_rows(self) -> bool:
        return self.mode in ("exact", "amortized")

    def _passes(self) -> tuple[int, int]:
        m, k = self.micro_batches, self.objectives
        if self.mode == "exact":
            return m, m * k
        if self.mode == "sketch":
            return (2 * m if m > 1 else m), m * (k + 1)
        return m, m

    def _reductions(self) -> int:
        if self.mode == "exact":
            return self.micro_batches * self.objectives
        return 1 if self.stage == 1 and not self._reduced else self.micro_batches
