"""A small network with every kind of parameter, and how it is trained by one plain process."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.optimize import root
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fairhuman.config import Config

REGIONS = ["face", "hand"]
BATCH = 3
LR = 1.0  # large, so that the update is well above the parameters' own rounding
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Net(nn.Module):
    """Sizes no number of ranks divides; tied, frozen and unused parameters; one for hands only."""

    def __init__(self, checkpointed: bool = False) -> None:
        super().__init__()
        self.checkpointed = checkpointed
        self.inner = nn.Conv2d(4, 13, 3, padding=1)
        self.norm = nn.GroupNorm(1, 13)
        self.first = nn.Conv2d(13, 13, 1)
        self.second = nn.Conv2d(13, 13, 1)
        self.second.weight = self.first.weight
        self.outer = nn.Conv2d(13, 4, 3, padding=1)
        self.unused = nn.Linear(5, 3)
        self.side = nn.Linear(5, 7)
        self.frozen = nn.Conv2d(4, 4, 1).requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.frozen(x)
        trunk = functools.partial(checkpoint, self._trunk, use_reentrant=False)
        x = trunk(x) if self.checkpointed else self._trunk(x)
        return self.outer(x), self.side(x[:, 0])

    def _trunk(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.norm(self.inner(x)))
        return self.second(torch.tanh(self.first(x)))


def net(checkpointed: bool = False) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return Net(checkpointed)


@dataclass(frozen=True)
class Case:
    """One way to train `Net`."""

    stage: int
    ranks: int = 2
    accumulation: int = 2
    precision: str = "fp32"
    checkpointed: bool = False
    mode: str = "exact"
    reduction: str = "image"
    alpha: float = 2.0
    normalize: str = "simplex"
    max_norm: float | None = None
    scale: dict[str, float] = field(default_factory=dict, hash=False)
    zero: dict[str, Any] = field(default_factory=dict, hash=False)
    fp16: dict[str, Any] = field(default_factory=dict, hash=False)
    communication: str | None = None
    optimizer: str = "SGD"
    steps: int = 3
    nan_at: int | None = None
    """The step at which the last rank alone meets a NaN."""

    @property
    def micro_batches(self) -> int:
        """Of a whole step: all ranks'."""
        return self.ranks * self.accumulation

    def __str__(self) -> str:
        parts = [f"zero{self.stage}", f"{self.ranks}x{self.accumulation}", self.precision]
        parts += [key for key in self.zero if self.zero[key]]
        parts += ["checkpointed"] * self.checkpointed
        parts += [f"{self.communication} between ranks"] * bool(self.communication)
        parts += ["nan"] * (self.nan_at is not None)
        parts += [self.mode] * (self.mode != "exact")
        parts += [self.reduction, self.normalize, f"max{self.max_norm}", f"alpha{self.alpha:g}"]
        return "-".join(parts)

    def config(self) -> Config:
        return Config.model_validate(
            {
                "model": {"pretrained": "none"},
                "data": {"root": "none"},
                "fairness": {"mode": self.mode, "alpha": self.alpha, "normalize": self.normalize},
                "optimizer": {"name": self.optimizer, "lr": LR, "weight_decay": 0.0},
                "train": {
                    "output_dir": "none",
                    "steps": self.steps,
                    "batch_size": BATCH,
                    "gradient_accumulation": self.accumulation,
                    "max_grad_norm": self.max_norm,
                    "precision": self.precision,
                },
                "deepspeed": {
                    # Without this, ZeRO-3 would keep parameters as small as these whole.
                    "zero_optimization": {"stage3_param_persistence_threshold": 0}
                    | {"stage": self.stage}
                    | self.zero,
                    "fp16": {"hysteresis": 1} | self.fp16,
                    "communication_data_type": self.communication,
                },
            }
        )


def batches(step: int, count: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The micro-batches of a step: faces in every other one, a hand in one, step 2 faceless."""
    rng = torch.Generator().manual_seed(step)
    result = []
    for index in range(count):
        x = torch.randn(BATCH, 4, 6, 5, generator=rng)
        y = torch.randn(BATCH, 4, 6, 5, generator=rng)
        masks = torch.zeros(BATCH, 2, 6, 5)
        if step != 2 and index % 2 == 0:
            masks[:, 0, :2, :3] = torch.rand(BATCH, 2, 3, generator=rng)
        if index == count - 1:
            masks[:2, 1, 3:, 2:] = 1.0
        result.append((x, y, masks))
    return result


def aside(side: Tensor) -> Tensor:
    """What the hand's loss has next to its part of the picture: it alone reaches `Net.side`."""
    return torch.stack([side.new_zeros(()), side.new_zeros(()), side.square().mean() / 10])


def solve(gram: np.ndarray, alpha: float) -> np.ndarray:
    """Weights by scipy on normalised coordinates, in logarithms."""
    norms = np.sqrt(np.diag(gram))
    cosines = gram / np.outer(norms, norms)
    start = np.full(len(gram), 0.0)
    # v = norms * w: cosines v = norms^(1/alpha - 1) v^(-1/alpha)
    scale = norms ** (1 / alpha - 1)

    def residual(log_v: np.ndarray) -> np.ndarray:
        v = np.exp(log_v) * np.mean(scale) ** (alpha / (1 + alpha))
        return np.log(np.maximum(cosines @ v, 1e-300)) - np.log(scale) + np.log(v) / alpha

    found = root(residual, start, method="lm", tol=1e-14)
    assert np.abs(residual(found.x)).max() < 1e-9
    return np.exp(found.x) * np.mean(scale) ** (alpha / (1 + alpha)) / norms


@dataclass
class Trained:
    """What a plain process got."""

    parameters: list[Tensor]
    start: list[Tensor]
    grams: list[Tensor]
    weights: list[Tensor]


@functools.cache
def train_alone(
    *,
    micro_batches: int,
    precision: str,
    mode: str,
    reduction: str,
    alpha: float,
    normalize: str,
    max_norm: float | None,
    scale: tuple[tuple[str, float], ...],
    scales: tuple[float | None, ...],
) -> Trained:
    """Train by torch.autograd.grad, with the weights by scipy.

    For fp32 all in float64 and on the whole batch at once; for the half precisions the same
    rounded parameters, micro-batches and loss scales, summed in float64.

    Args:
        scales: each step's loss scale; None for a step that is skipped.
    """
    dtype = torch.float64 if precision == "fp32" else DTYPES[precision]
    model = net().to(dtype)
    masters = net().to(dtype).to(torch.promote_types(dtype, torch.float32))
    trained = [p for p in masters.parameters() if p.requires_grad]
    start = [p.detach().double().clone() for p in trained]
    grams, weights_of_steps = [], []
    for step, loss_scale in enumerate(scales):
        grams.append(torch.zeros(3, 3, dtype=torch.float64))
        weights_of_steps.append(torch.zeros(3, dtype=torch.float64))
        if loss_scale is None:
            continue
        with torch.no_grad():
            for p, master in zip(model.parameters(), masters.parameters(), strict=True):
                p.copy_(master)
        parts = batches(step, micro_batches)
        area = torch.stack([_whole(masks).sum((0, 2, 3)) for _, _, masks in parts]).sum(0).double()
        if precision == "fp32":
            x, y, masks = (torch.cat(part) for part in zip(*parts, strict=True))
            parts = [(x, y, masks)]
        here = [k for k in range(3) if area[k] > 0 and (mode != "global" or k == 0)]
        stacked = torch.zeros(len(here), sum(p.numel() for p in trained), dtype=torch.float64)
        for x, y, masks in parts:
            losses = _losses(model, x, y, masks, area, len(parts), reduction, dict(scale))
            for row, k in zip(stacked, here, strict=True):
                row += _gradient(losses[k], model, loss_scale)
        gram = stacked @ stacked.T
        if mode == "exact":
            w = torch.from_numpy(solve(gram.numpy(), alpha))
        else:
            w = torch.ones(len(here), dtype=torch.float64)
        d = w @ stacked
        factor = 1.0
        if mode == "exact" and normalize == "ball":
            assert max_norm is not None
            factor = max_norm / float(d.norm())
        elif mode == "exact" and normalize == "simplex":
            factor = 1 / float(w.sum())
        if max_norm is not None:
            factor *= min(1.0, max_norm / (float(d.norm()) * factor))
        grams[step][torch.tensor(here)[:, None], torch.tensor(here)] = gram
        weights_of_steps[step][here] = w * factor
        _move(trained, d * factor)
    moved = [p.detach().to(dtype).double() for p in trained]
    return Trained(moved, start, grams, weights_of_steps)


def expected(case: Case, scales: list[float | None]) -> Trained:
    """Return what a plain process gets for a case, given each step's scale, None if skipped."""
    return train_alone(
        micro_batches=case.micro_batches,
        precision=case.precision,
        mode=case.mode,
        reduction=case.reduction,
        alpha=case.alpha,
        normalize=case.normalize,
        max_norm=case.max_norm,
        scale=tuple(case.scale.items()),
        scales=tuple(scales),
    )


def _whole(masks: Tensor) -> Tensor:
    return torch.cat([torch.ones_like(masks[:, :1]), masks], dim=1)


def _losses(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    masks: Tensor,
    area: Tensor,
    parts: int,
    reduction: str,
    scale: dict[str, float],
) -> list[Tensor]:
    """The part of the three losses of the whole step that one of its parts makes up."""
    dtype = next(model.parameters()).dtype
    pred, side = model(x.to(dtype))
    work = torch.promote_types(dtype, torch.float32)
    error = (pred.to(work) - y.to(work)).square()
    whole = _whole(masks)
    losses = []
    for k, name in enumerate(["global", *REGIONS]):
        size = area[k] if reduction == "region" else area[0]
        losses.append(scale.get(name, 1.0) * (error * whole[:, k : k + 1]).sum() / (4 * size))
    losses[2] = losses[2] + aside(side.to(work))[2] / parts
    return losses


def _gradient(loss: Tensor, model: nn.Module, loss_scale: float) -> Tensor:
    trained = [p for p in model.parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss * loss_scale, trained, retain_graph=True, allow_unused=True)
    flat = [
        (torch.zeros_like(p) if g is None else g).double().reshape(-1)
        for p, g in zip(trained, grads, strict=True)
    ]
    return torch.cat(flat) / loss_scale


def _move(parameters: list[nn.Parameter], direction: Tensor) -> None:
    start = 0
    with torch.no_grad():
        for p in parameters:
            p.sub_(LR * direction[start : start + p.numel()].view_as(p))
            start += p.numel()
