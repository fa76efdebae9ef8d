"""The dynamic loss scale of DeepSpeed's fp16 at its lower end."""

from __future__ import annotations

from fairhuman.zero.protocol import Engine


def skip_at_least_scale(engine: Engine) -> None:
    """Have an overflow at the least loss scale skip the step, as at any other.

    There DeepSpeed would raise a bare Exception. It keeps its scaler in checkpoints, so this is
    to be called after one was loaded.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    scaler = getattr(engine.optimizer, "loss_scaler", None)
    if isinstance(scaler, DynamicLossScaler):
        scaler.raise_error_at_min_scale = False
