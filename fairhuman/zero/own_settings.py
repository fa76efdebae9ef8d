"""The settings that a resumed run takes from its config, where its checkpoint holds older ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fairhuman.common.errors import ConfigError
from fairhuman.zero.protocol import Engine

# Where one of these is another, the scale begins where the config says.
_BEGINNINGS = ("loss_scale", "initial_scale_power")


class OwnSettings:
    """What an engine's config says of optimizer, schedule and loss scaling, before a load.

    DeepSpeed and PyTorch load a checkpoint's settings together with its state. `put_back` keeps
    the state (moments, how many steps were taken, the loss scale) and brings the config's
    settings back, with the learning rate where the config's schedule has it at that step.
    Settings that did not change are the same bits as before.
    """

    def __init__(self, engine: Engine) -> None:
        self.groups = [
            {key: value for key, value in group.items() if key != "params"}
            for group in engine.optimizer.optimizer.param_groups
        ]
        self.rates = list(engine.lr_scheduler.base_lrs) if engine.lr_scheduler else []
        self.scaler: Any = getattr(engine.optimizer, "loss_scaler", None)

    def put_back(self, engine: Engine, made_with: Mapping[str, Any]) -> None:
        """Bring them back into an engine that has loaded a checkpoint.

        Args:
            engine: the one that this was made of.
            made_with: the DeepSpeed config that the checkpoint was made with.

        Raises:
            ConfigError: the checkpoint's optimizer had other parameter groups.
        """
        groups = engine.optimizer.optimizer.param_groups
        if len(groups) != len(self.groups):
            raise ConfigError(
                f"the checkpoint's optimizer has {len(groups)} parameter groups, this run's has "
                f"{len(self.groups)}; continue with the FairHuman that wrote it"
            )
        for group, own in zip(groups, self.groups, strict=True):
            group.update(own)
        scheduler = engine.lr_scheduler
        if scheduler is not None:
            scheduler.base_lrs = list(self.rates)
            factors = [factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
            rates = [rate * factor for rate, factor in zip(self.rates, factors, strict=True)]
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate
            scheduler._last_lr = rates
        if engine.fp16_enabled():
            self._scale(engine, made_with.get("fp16") or {})

    def _scale(self, engine: Engine, made_with: Mapping[str, Any]) -> None:
        """Bring the loss scaler's settings back; keep the scale unless its start changed."""
        own = engine.config["fp16"]
        if own == made_with or not made_with.get("enabled"):
            return
        zero, scaler = engine.optimizer, self.scaler
        loaded = zero.loss_scaler
        begins = any(own.get(key) != made_with.get(key) for key in _BEGINNINGS)
        if scaler.dynamic and loaded.dynamic and not begins:
            scaler.cur_scale = max(loaded.cur_scale, scaler.min_scale)
            scaler.cur_iter = loaded.cur_iter
            scaler.last_overflow_iter = loaded.last_overflow_iter
        zero.loss_scaler, zero.dynamic_loss_scale = scaler, scaler.dynamic
