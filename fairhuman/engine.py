"""The DeepSpeed engine of a run: its config, the optimizer, the schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fairhuman.config import Config
from fairhuman.errors import ConfigError
from fairhuman.fairness.zero.check import check_deepspeed
from fairhuman.fairness.zero.stage3 import whole_weights


def make_engine(config: Config, model: nn.Module) -> Any:
    """Wrap the model's trainable parameters in a DeepSpeed engine."""
    import deepspeed

    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = make_optimizer(config, trained)
    with redirect_stdout(None):  # some of DeepSpeed's optimizers print the memory they use
        engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            lr_scheduler=_schedule(config),
            config=deepspeed_config(config),
            dist_init_required=False,
        )
    return engine


@contextmanager
def gathered(engine: Any) -> Iterator[None]:
    """Have the model's whole weights on every rank: to save them, to draw or to validate.

    Entering and leaving are collectives. Inside, any rank may use the module alone, without
    gradients, while the others wait. Under ZeRO-3 it takes the memory of all weights in their
    training precision; under ZeRO-1 and 2 they are whole anyway, and this does nothing.
    """
    if engine.zero_optimization_partition_weights():
        with whole_weights(engine):
            yield
    else:
        yield


def check_engine(config: Config) -> None:
    """Check what only DeepSpeed can tell: precisions, its own keys, its gradients in `exact`.

    A collective.

    Raises:
        ConfigError: one line per problem.
    """
    from deepspeed.accelerator import get_accelerator

    device = get_accelerator()
    precision = config.train.precision
    able = {"fp32": True, "bf16": device.is_bf16_supported(), "fp16": device.is_fp16_supported()}
    if not able[precision]:
        others = " or ".join(name for name, works in able.items() if works)
        raise ConfigError(
            f"train.precision = {precision!r}: this {device.device_name()} cannot; use {others}"
        )
    if config.optimizer.name == "PagedAdamW8bit" and device.device_name() != "cuda":
        raise ConfigError(
            "optimizer.name = 'PagedAdamW8bit': bitsandbytes pages the memory of CUDA devices, and "
            f"this run is on the {device.device_name()}; use AdamW8bit"
        )
    zero_config(config)
    if config.fairness.solves:
        with redirect_stdout(None):
            check_deepspeed(deepspeed_config(config))


def zero_config(config: Config) -> Any:
    """Return the config's zero_optimization as DeepSpeed reads it, with its defaults.

    Raises:
        ConfigError: DeepSpeed knows no such key or value.
    """
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    try:
        return DeepSpeedZeroConfig(**config.deepspeed["zero_optimization"])
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"])
            lines.append(
                f"deepspeed.zero_optimization.{key} = {problem['input']!r}: {problem['msg']}"
            )
        raise ConfigError("\n".join(lines)) from None


def deepspeed_config(config: Config) -> dict[str, Any]:
    """Return the user's DeepSpeed config with sizes, clipping and precision from `train`."""
    train = config.train
    # In `exact` the norm of the update is known from the solve, and clipped before DeepSpeed
    # sees it.
    clips_itself = config.fairness.solves or train.max_grad_norm is None
    tree = {
        **config.deepspeed,
        "train_micro_batch_size_per_gpu": train.batch_size,
        "gradient_accumulation_steps": train.gradient_accumulation,
        "gradient_clipping": 0.0 if clips_itself else train.max_grad_norm,
        "zero_allow_untested_optimizer": True,  # bitsandbytes' optimizers
        "steps_per_print": None,
        "fp16": {**config.deepspeed.get("fp16", {}), "enabled": train.precision == "fp16"},
        "bf16": {
            # Without this, DeepSpeed takes the step on an infinite bf16 gradient.
            "check_grad_overflow": True,
            **config.deepspeed.get("bf16", {}),
            "enabled": train.precision == "bf16",
        },
    }
    for key in ("train_batch_size", "optimizer", "scheduler"):
        tree.pop(key, None)
    zero = dict(config.deepspeed["zero_optimization"])
    if zero.get("offload_optimizer"):
        # DeepSpeed would insist on its own Adam, which it compiles at run time.
        tree["zero_force_ds_cpu_optimizer"] = False
    if zero["stage"] == 3 and config.fairness.solves:
        # DeepSpeed looks this far ahead for the next use of each weight it could release. Over
        # K backward passes that search alone takes longer than the training.
        zero["stage3_max_reuse_distance"] = 0
    tree["zero_optimization"] = zero
    if train.precision != "fp32":
        # Sums over micro-batches in bf16 lose the small objectives' gradients. (Between ranks,
        # deepspeed.communication_data_type says; by default it is train.precision.)
        tree["data_types"] = {"grad_accum_dtype": "fp32"}
    return tree


def make_optimizer(config: Config, parameters: Sequence[nn.Parameter]) -> Optimizer:
    """Return the optimizer, with norms and biases in a group of their own.

    They are not decayed, and the 8-bit optimizers keep their moments in 32 bits: ZeRO hands
    bitsandbytes one flat tensor per group, whose size says nothing about the tensors in it.
    """
    settings = config.optimizer
    matrices = [p for p in parameters if p.ndim > 1]
    vectors = [p for p in parameters if p.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": settings.weight_decay, "optim_bits": 8},
        {"params": vectors, "weight_decay": 0.0, "optim_bits": 32},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.name == "SGD":
        return torch.optim.SGD(groups, lr=settings.lr)
    if settings.name == "Adafactor":
        return _adafactor(groups, settings.lr)
    adam: dict[str, Any] = {"lr": settings.lr, "betas": settings.betas, "eps": settings.eps}
    if settings.name == "AdamW":
        return torch.optim.AdamW(groups, **adam)
    return _adamw8bit(groups, paged=settings.name == "PagedAdamW8bit", **adam)


def _adamw8bit(groups: Sequence[dict[str, Any]], paged: bool, **settings: Any) -> Optimizer:
    """Return bitsandbytes' AdamW with each group's own `optim_bits`.

    Its own way to set them is by the group's index, which under ZeRO-1 and 2 is always 0:
    DeepSpeed steps one group at a time.
    """
    from bitsandbytes.optim import AdamW8bit, PagedAdamW8bit

    kind: Any = PagedAdamW8bit if paged else AdamW8bit

    class Grouped(kind):
        def get_config(self, gindex: int, pindex: int, group: dict[str, Any]) -> dict[str, Any]:
            config: dict[str, Any] = super().get_config(gindex, pindex, group)
            return {**config, "optim_bits": group["optim_bits"]}

    optimizer: Optimizer = Grouped(groups, **settings)
    return optimizer


def _adafactor(groups: Sequence[dict[str, Any]], lr: float) -> Optimizer:
    """Return transformers' Adafactor (Shazeer & Stern 2018, arXiv 1804.04235), element by element.

    ZeRO hands it flat shards. Of vectors it keeps the whole second moment. Steps relative to the
    parameters' root mean square, and clipping by the update's, are off: of a shard, these hang on
    the number of ranks. (torch.optim.Adafactor can switch neither off.)
    """
    from transformers.optimization import Adafactor

    optimizer: Optimizer = Adafactor(
        groups, lr=lr, scale_parameter=False, relative_step=False, clip_threshold=math.inf
    )
    return optimizer


def _schedule(config: Config) -> Callable[[Optimizer], LRScheduler]:
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
            num_training_steps=config.train.steps,
            num_cycles=config.optimizer.cycles,
            power=config.optimizer.power,
        )
        return scheduler

    return build
