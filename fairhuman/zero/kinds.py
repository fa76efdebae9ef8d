"""Which of DeepSpeed's optimizers an engine has."""

from __future__ import annotations

from enum import Enum, auto

from fairhuman.zero.protocol import Engine


class Kind(Enum):
    """The optimizers whose buffers are known."""

    STAGE12 = auto()
    STAGE3 = auto()
    BF16 = auto()


def kind_of(engine: Engine) -> Kind | None:
    """Return the kind of an engine's optimizer; None for one that is not known.

    By the class itself: a subclass (ZenFlow's, SuperOffload's) keeps its gradients elsewhere.
    """
    from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    kinds = {
        DeepSpeedZeroOptimizer: Kind.STAGE12,
        DeepSpeedZeroOptimizer_Stage3: Kind.STAGE3,
        BF16_Optimizer: Kind.BF16,
    }
    return kinds.get(type(engine.optimizer))
