"""The DeepSpeed engine of a run: its config, the optimizer, the schedule."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from pydantic import ValidationError
from torch import nn

from fairhuman.common.distributed import agreed
from fairhuman.common.errors import ConfigError
from fairhuman.config import Config
from fairhuman.zero.accelerator import device_name, precisions
from fairhuman.zero.check import check_deepspeed
from fairhuman.zero.limits import check_sizes
from fairhuman.zero.optimizers import make_optimizer, make_schedule
from fairhuman.zero.protocol import Engine
from fairhuman.zero.stage3 import whole_weights


def make_engine(config: Config, model: nn.Module) -> Engine:
    """Wrap the model's trainable parameters in a DeepSpeed engine; a collective.

    Raises:
        ConfigError: a rank's part of them is larger than the optimizer can count.
    """
    import deepspeed

    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = make_optimizer(config, trained)
    with redirect_stdout(None):  # some of DeepSpeed's optimizers print the memory they use
        engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            lr_scheduler=make_schedule(config),
            config=deepspeed_config(config),
            dist_init_required=False,
        )
    agreed(lambda: check_sizes(engine))
    return engine


@contextmanager
def gathered(engine: Engine) -> Iterator[None]:
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
    precision, able, device = config.train.precision, precisions(), device_name()
    if precision not in able:
        raise ConfigError(
            f"train.precision = {precision!r}: this {device} cannot; use {' or '.join(able)}"
        )
    if config.optimizer.name == "PagedAdamW8bit" and device != "cuda":
        raise ConfigError(
            "optimizer.name = 'PagedAdamW8bit': bitsandbytes pages the memory of CUDA devices, and "
            f"this run is on the {device}; use AdamW8bit"
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
        "timers": {"throughput": {"enabled": False}},  # waits for the device at every step
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
