"""The ways to train `small_net.Net` in the modes that measure now and then."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from small_net import Case

from fairhuman.config import Config

DWA_WINDOW = 2
SKETCH = 256  # well below the net's 800 parameters, so that they share buckets


@dataclass(frozen=True)
class Way:
    """One way to train `small_net.Net` in one of the new modes."""

    mode: str
    stage: int = 2
    zero: dict[str, Any] = field(default_factory=dict, hash=False)
    ranks: int = 2
    accumulation: int = 2
    precision: str = "fp32"
    between: str = "calibrated"
    every: int = 3
    normalize: str = "simplex"
    max_norm: float | None = None
    floor: float = 0.0
    keep: float = 0.0
    rule: str = "mpd"
    reduction: str = "image"
    checkpointed: bool = False
    fp16: dict[str, Any] = field(default_factory=dict, hash=False)
    steps: int = 4
    nan_at: int | None = None

    def __str__(self) -> str:
        parts = [self.mode, f"zero{self.stage}", *self.zero, f"{self.ranks}x{self.accumulation}"]
        parts += [self.precision, f"every{self.every}", self.between, self.normalize]
        parts += ["nan"] * (self.nan_at is not None) + ["overflow"] * bool(self.fp16)
        parts += [self.reduction, f"max{self.max_norm}", f"floor{self.floor:g}"]
        parts += [f"keep{self.keep:g}"] * bool(self.keep)
        parts += [self.rule] * (self.rule != "mpd")
        return "-".join(parts)

    def config(self) -> Config:
        case = Case(
            self.stage,
            accumulation=self.accumulation,
            precision=self.precision,
            normalize=self.normalize,
            max_norm=self.max_norm,
            zero=self.zero,
            fp16=self.fp16,
            communication="fp32",
            steps=self.steps,
        )
        tree = case.config().model_dump()
        tree["fairness"] |= {
            "mode": self.mode,
            "rule": self.rule,
            "between": self.between,
            "refresh_every": self.every,
            "floor": self.floor,
            "keep": self.keep,
            "sketch_size": SKETCH,
            "dwa_window": DWA_WINDOW if self.mode == "dwa" else 25,
        }
        return Config.model_validate(tree)
