"""Forms of an engine whose checkpoints are resumed in another, and the net that it trains."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fairhuman.config import Config
from fairhuman.zero.optimizers import LARGEST_GROUP

OFFLOAD = {"offload_optimizer": {"device": "cpu", "pin_memory": False}}


GLOBAL_BATCH = 6  # 1, 2 and 3 ranks divide it


@dataclass(frozen=True)
class Form:
    """How an engine is set up."""

    ranks: int
    stage: int
    zero: dict[str, Any] = field(default_factory=dict, hash=False)
    precision: str = "fp32"
    optimizer: str = "AdamW"
    largest_group: int = LARGEST_GROUP

    def __str__(self) -> str:
        parts = [str(self.ranks), f"zero{self.stage}", self.precision, self.optimizer]
        cut = [] if self.largest_group == LARGEST_GROUP else [f"groups{self.largest_group}"]
        return "-".join([*parts, *self.zero, *cut])

    def config(self) -> Config:
        return Config.model_validate(
            {
                "model": {"pretrained": "none"},
                "data": {"root": "none"},
                "fairness": {"mode": "sum"},
                "optimizer": {
                    "name": self.optimizer,
                    "lr": 1e-3,
                    "schedule": "linear",
                    "warmup_steps": 4,
                    "weight_decay": 0.1,
                },
                "train": {
                    "output_dir": "none",
                    "steps": 100,
                    "batch_size": GLOBAL_BATCH // self.ranks,
                    "max_grad_norm": None,
                    "precision": self.precision,
                },
                "deepspeed": {
                    "zero_optimization": {
                        "stage": self.stage,
                        "stage3_param_persistence_threshold": 100,
                        **self.zero,
                    },
                    "fp16": {"initial_scale_power": 22, "hysteresis": 1, "loss_scale_window": 2},
                },
            }
        )


class Net(nn.Module):
    """Sizes no number of ranks divides, large enough for 8-bit moments on three ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(65, 193)
        self.frozen = nn.Linear(65, 65).requires_grad_(False)
        self.outer = nn.Linear(193, 65)
        self.shifts = nn.Parameter(torch.zeros(9_001))

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(self.frozen(x)))) + self.shifts[:65]


def go(engine: Any, steps: range) -> None:
    import torch.distributed as dist

    share = GLOBAL_BATCH // dist.get_world_size()
    for step in steps:
        rng = torch.Generator().manual_seed(step)
        x = torch.randn(GLOBAL_BATCH, 65, generator=rng)[dist.get_rank() * share :][:share]
        out = engine(x.to(next(engine.module.parameters()).dtype))
        engine.set_gradient_accumulation_boundary(True)
        engine.backward((out.float() - 1).square().mean())
        engine.step()


def masters(engine: Any) -> dict[str, Tensor]:
    """The whole master weights, by DeepSpeed's own reading."""
    from deepspeed.utils import safe_get_full_fp32_param

    if engine.config["zero_optimization"].get("round_robin_gradients"):
        return {}  # which mixes them up there
    return {
        engine.param_names[p]: safe_get_full_fp32_param(p).clone().reshape(p_shape(p)).cpu()
        for p in engine.module.parameters()
        if p.requires_grad
    }


def p_shape(p: Any) -> Any:
    return p.ds_shape if hasattr(p, "ds_shape") else p.shape
