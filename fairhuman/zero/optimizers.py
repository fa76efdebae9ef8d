"""The optimizers and schedules that the section `optimizer` names."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fairhuman.config import Config
from fairhuman.zero.parts import cut

# Bytes per parameter. 8 bit: two scales per 256. Paged ones as if all were on the device, where
# they are while there is room. Adafactor: of ZeRO's flat shards, the second moment is not factored.
MOMENT_BYTES = {
    "AdamW8bit": 2 + 8 / 256,
    "PagedAdamW8bit": 2 + 8 / 256,
    "AdamW": 8.0,
    "Adafactor": 4.0,
    "SGD": 0.0,
}
LARGEST_GROUP = 2**30
"""Elements in a parameter group, at most, unless one parameter has more: bitsandbytes counts those
of a tensor in 32 bits, and ZeRO hands it one flat tensor per group and rank."""


def make_optimizer(config: Config, parameters: Sequence[nn.Parameter]) -> Optimizer:
    """Return the optimizer, with norms and biases in groups of their own.

    They are not decayed, and the 8-bit optimizers keep their moments in 32 bits: ZeRO hands
    bitsandbytes one flat tensor per group, whose size says nothing about the tensors in it. The
    groups depend on the parameters alone, not on the number of ranks.
    """
    settings = config.optimizer
    matrices = [p for p in parameters if p.ndim > 1]
    vectors = [p for p in parameters if p.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": part, "weight_decay": decay, "optim_bits": bits}
        for whole, decay, bits in ((matrices, settings.weight_decay, 8), (vectors, 0.0, 32))
        for part in cut(whole, LARGEST_GROUP)
    ]
    if settings.name == "SGD":
        return torch.optim.SGD(groups, lr=settings.lr)
    if settings.name == "Adafactor":
        return _adafactor(groups, settings.lr)
    adam: dict[str, Any] = {"lr": settings.lr, "betas": settings.betas, "eps": settings.eps}
    if settings.name == "AdamW":
        # Fused: without temporaries, and on the CPU six times as fast as the loop over operations.
        return torch.optim.AdamW(groups, fused=True, **adam)
    return _adamw8bit(groups, paged=settings.name == "PagedAdamW8bit", **adam)


def _adamw8bit(groups: Sequence[dict[str, Any]], paged: bool, **settings: Any) -> Optimizer:
    """Return bitsandbytes' AdamW with each group's own `optim_bits`, and without waiting.

    Its own way to set them is by the group's index, which under ZeRO-1 and 2 is always 0:
    DeepSpeed steps one group at a time. And it waits for the device after each tensor, which only
    paged moments need.
    """
    from bitsandbytes.optim import AdamW8bit, PagedAdamW8bit

    kind: Any = PagedAdamW8bit if paged else AdamW8bit

    class Grouped(kind):
        def get_config(self, gindex: int, pindex: int, group: dict[str, Any]) -> dict[str, Any]:
            config: dict[str, Any] = super().get_config(gindex, pindex, group)
            return {**config, "optim_bits": group["optim_bits"]}

        @torch.no_grad()
        def step(self, closure: Callable[[], Any] | None = None) -> Any:
            if paged or closure or not self.initialized:
                return super().step(closure)
            for gindex, group in enumerate(self.param_groups):
                for pindex, p in enumerate(group["params"]):
                    if p.grad is None:
                        continue
                    if not self.state[p]:
                        self.init_state(group, p, gindex, pindex)
                    self.update_step(group, p, gindex, pindex)
            return None

    optimizer: Optimizer = Grouped(groups, **settings)
    return optimizer


def _adafactor(groups: Sequence[dict[str, Any]], lr: float) -> Optimizer:
    """Return transformers' Adafactor (Shazeer & Stern 2018, arXiv 1804.04235), element by element.

    ZeRO hands it flat shards. Of vectors it keeps the whole second moment. Steps relative to the
    parameters' root mean square, and clipping by the update's, are off: of a shard, these depend on
    the number of ranks. (torch.optim.Adafactor can switch neither off.)
    """
    from transformers.optimization import Adafactor

    optimizer: Optimizer = Adafactor(
        groups, lr=lr, scale_parameter=False, relative_step=False, clip_threshold=math.inf
    )
    return optimizer


def make_schedule(config: Config) -> Callable[[Optimizer], LRScheduler]:
    """Return what makes the learning rate's schedule of an optimizer, as DeepSpeed wants it."""
    from diffusers.optimization import get_scheduler

    warmup = config.optimizer.warmup_steps
    name = config.optimizer.schedule
    if name == "constant" and warmup:
        name = "constant_with_warmup"  # type: ignore[assignment]  # diffusers' name for it

    def build(optimizer: Optimizer) -> LRScheduler:
        scheduler: LRScheduler = get_scheduler(
            name,
            optimizer,
            num_warmup_steps=warmup,
            num_training_steps=config.train.total_steps,
            num_cycles=config.optimizer.cycles,
            power=config.optimizer.power,
        )
        return scheduler

    return build
