"""Which gradients an engine has, by the optimizer that DeepSpeed chose for it."""

from __future__ import annotations

from fairhuman.common.errors import ConfigError
from fairhuman.zero.access import ShardAccess
from fairhuman.zero.collected import CollectedGradients
from fairhuman.zero.gradients import Gradients
from fairhuman.zero.kinds import Kind, kind_of
from fairhuman.zero.protocol import Engine
from fairhuman.zero.reduced import ReducedGradients


def make_gradients(engine: Engine) -> Gradients:
    """Return the gradients of an engine's steps; from then on, only they may take its steps.

    Raises:
        ConfigError: this DeepSpeed, or the optimizer that its config chose, cannot be used.
    """
    from fairhuman.zero.bf16 import BF16Shards
    from fairhuman.zero.stage3 import OffloadedStage3Shards, Stage3Shards
    from fairhuman.zero.stage12 import OffloadedStage12Shards

    optimizer, found = engine.optimizer, kind_of(engine)
    access: type[ShardAccess]
    if found is Kind.STAGE12 and not optimizer.cpu_offload:
        _check(engine, ReducedGradients.needs)
        return ReducedGradients(engine)
    if found is Kind.STAGE12:
        access = OffloadedStage12Shards
    elif found is Kind.STAGE3:
        access = OffloadedStage3Shards if optimizer.offload_optimizer else Stage3Shards
    elif found is Kind.BF16:
        access = BF16Shards
    else:
        raise ConfigError(
            "deepspeed: weights from gradients need ZeRO stage 1, 2 or 3, got the optimizer "
            f"{type(optimizer).__name__}"
        )
    _check(engine, access.needs)
    return CollectedGradients(access(engine))


def _check(engine: Engine, needs: tuple[str, ...]) -> None:
    import deepspeed

    name = type(engine.optimizer).__name__
    missing = [f"{name}.{need}" for need in needs if not hasattr(engine.optimizer, need)]
    if not hasattr(engine, "set_gradient_accumulation_boundary"):
        missing.append("engine.set_gradient_accumulation_boundary")
    if missing:
        raise ConfigError(
            f"deepspeed {deepspeed.__version__} has no {', '.join(missing)}, which "
            "weights from gradients need; install the version in constraints.txt"
        )
