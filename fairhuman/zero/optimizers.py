"""The optimizers and schedules that the section `optimizer` names."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fairhuman.config import Config
from fairhuman.config.schema import Optimizer as Settings
from fairhuman.zero.parts import cut

# Bytes per parameter. 8 bit: two scales per 256. Paged ones as if all were on the device, where
# they are while there is room. Adafactor: of ZeRO's flat shards, the second moment is not factored.
MOMENT_BYTES = {
    "AdamW8bit": 2 + 8 / 256,
    "PagedAdamW8bit": 2 + 8 / 256,
    "Lion8bit": 1 + 4 / 256,
    "AdEMAMix8bit": 3 + 12 / 256,
    "AdamW": 8.0,
    "Adafactor": 4.0,
    "SGD": 0.0,
}
# bitsandbytes' own, of the slow average.
ADEMAMIX_BETA3 = 0.9999
LARGEST_GROUP = 2**30
"""Elements in a parameter group, at most, unless one parameter has more: bitsandbytes counts those
of a tensor in 32 bits, and ZeRO hands it one flat tensor per group and rank."""


def make_optimizer(config: Config, parameters: Mapping[str, nn.Parameter]) -> Optimizer:
    """Return the optimizer, with groups of their own for norms and biases, and per learning rate.

    Norms and biases are not decayed, and the 8-bit optimizers keep their moments in 32 bits: ZeRO
    hands bitsandbytes one flat tensor per group, whose size says nothing about the tensors in it.
    The groups depend on the parameters and the rates alone, not on the number of ranks.

    Args:
        config: its section optimizer.
        parameters: those that are trained, by their names in the model.
    """
    settings = config.optimizer
    groups = _groups(settings, parameters)
    if settings.name == "SGD":
        return torch.optim.SGD(groups, lr=settings.lr)
    if settings.name == "Adafactor":
        return _adafactor(groups, settings.lr, **settings.params)
    if settings.name == "AdamW":
        # Fused: without temporaries, and on the CPU six times as fast as the loop over operations.
        return torch.optim.AdamW(
            groups, lr=settings.lr, betas=settings.decays, eps=settings.eps, fused=True
        )
    return _bitsandbytes(groups, settings)


def is_vector(name: str, dimensions: int) -> bool:
    """Whether a parameter is a norm's, a bias or a DoRA's magnitudes, which are not decayed."""
    # A convolution's magnitudes have four dimensions, of which one is not 1.
    return dimensions <= 1 or "lora_magnitude_vector" in name


def _groups(settings: Settings, parameters: Mapping[str, nn.Parameter]) -> list[dict[str, Any]]:
    """Return parameter groups: matrices, then vectors, each by learning rate."""
    groups: list[dict[str, Any]] = []
    for vectors, decay, bits in ((False, settings.weight_decay, 8), (True, 0.0, 32)):
        by_rate: dict[float, list[nn.Parameter]] = {}
        for name, parameter in parameters.items():
            if is_vector(name, parameter.ndim) == vectors:
                by_rate.setdefault(_rate(settings, name), []).append(parameter)
        groups += [
            {"params": part, "lr": rate, "weight_decay": decay, "optim_bits": bits}
            for rate, whole in by_rate.items()
            for part in cut(whole, LARGEST_GROUP)
        ]
    return groups


def _rate(settings: Settings, name: str) -> float:
    """Return the learning rate of a parameter, after warm-up."""
    rate = settings.lr
    if settings.text_encoder_lr is not None and name.startswith("text_encoder"):
        rate = settings.text_encoder_lr
    return rate * settings.lora_plus_ratio if ".lora_B." in name else rate


def _bitsandbytes(groups: Sequence[dict[str, Any]], settings: Settings) -> Optimizer:
    """Return one of bitsandbytes' with each group's own `optim_bits`, and without waiting.

    Its own way to set them is by the group's index, which under ZeRO-1 and 2 is always 0:
    DeepSpeed steps one group at a time. And it waits for the device after each tensor, which only
    paged moments need.
    """
    from bitsandbytes import optim

    kind: Any = getattr(optim, settings.name)
    keys: dict[str, Any] = {"lr": settings.lr, "betas": settings.decays, **settings.params}
    if settings.name == "AdEMAMix8bit":
        keys["betas"] = (*settings.decays, keys.pop("beta3", ADEMAMIX_BETA3))
        keys |= {key: int(keys[key]) for key in ("t_alpha", "t_beta3") if key in keys}
    if settings.name != "Lion8bit":
        keys["eps"] = settings.eps

    class Grouped(kind):
        def get_config(self, gindex: int, pindex: int, group: dict[str, Any]) -> dict[str, Any]:
            config: dict[str, Any] = super().get_config(gindex, pindex, group)
            return {**config, "optim_bits": group["optim_bits"]}

        @torch.no_grad()
        def step(self, closure: Callable[[], Any] | None = None) -> Any:
            if self.is_paged or closure or not self.initialized:
                return super().step(closure)
            for gindex, group in enumerate(self.param_groups):
                for pindex, p in enumerate(group["params"]):
                    if p.grad is None:
                        continue
                    if not self.state[p]:
                        self.init_state(group, p, gindex, pindex)
                    self.update_step(group, p, gindex, pindex)
            return None

    optimizer: Optimizer = Grouped(groups, **keys)
    return optimizer


def _adafactor(groups: Sequence[dict[str, Any]], lr: float, **params: Any) -> Optimizer:
    """Return transformers' Adafactor (Shazeer & Stern 2018, arXiv 1804.04235), element by element.

    ZeRO hands it flat shards. Of vectors it keeps the whole second moment. Steps relative to the
    parameters' root mean square, and clipping by the update's, are off: of a shard, these depend on
    the number of ranks. (torch.optim.Adafactor can switch neither off.)
    """
    from transformers.optimization import Adafactor

    optimizer: Optimizer = Adafactor(
        groups,
        lr=lr,
        scale_parameter=False,
        relative_step=False,
        clip_threshold=math.inf,
        **params,
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
