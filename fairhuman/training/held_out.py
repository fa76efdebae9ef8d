"""The losses of every held-out image at one moment, and their changes since the start."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fairhuman.checkpointing import StartLosses
from fairhuman.config import QUARTERS, change_keys, held_out_keys


@dataclass(frozen=True)
class HeldOut:
    """What was measured on N held-out images; the same on every rank."""

    names: list[str]
    """The K objectives."""
    images: list[str]
    """The N images' ids."""
    reduction: str
    """`objectives.reduction`: whether an image counts once, or by a region's area in it."""
    losses: Tensor
    """[N, QUARTERS, K] float64, each image's own, without `objectives.scale`."""
    areas: Tensor
    """[N, K] float64, in cells of the latent grid; 0: the image does not show the region."""

    def means(self) -> dict[str, float | None]:
        """Return the losses by their keys; None for a region that no held-out image has.

        Under val/loss/NAME/q1 to q4 those of the quarters, and under val/loss/NAME their mean.
        """
        found: dict[str, float | None] = {}
        sizes = self._sizes()
        for k, name in enumerate(self.names):
            parts: list[float | None] = [None] * QUARTERS
            mean = None
            if self.areas[:, k].any():
                quarters = (self.losses[:, :, k] * sizes[:, k, None]).sum(0) / sizes[:, k].sum()
                parts, mean = quarters.tolist(), float(quarters.mean())
            found.update(zip(held_out_keys(name), [mean, *parts], strict=True))
        return found

    def since(self, start: HeldOut) -> dict[str, float | None]:
        """Return how far the losses have changed since `start`, of the same images, by their keys.

        Under val/change/NAME the change of the mean in per cent, and under val/change_se/NAME its
        standard error over the images that show the region. The change is a ratio of two sums over
        the same images with the same noise, r = sum_b y_b / sum_b x_b, and its error that of the
        ratio estimator: sqrt(n / (n - 1) sum_b (y_b - r x_b)^2) / sum_b x_b. None where there is no
        such image, or for the error, but one.
        """
        found: dict[str, float | None] = {}
        sizes = self._sizes()
        before, now = (part.losses.mean(1) * sizes for part in (start, self))
        for k, name in enumerate(self.names):
            shown = self.areas[:, k] > 0
            x, y = before[shown, k], now[shown, k]
            n, total = len(x), float(x.sum())
            change = error = None
            if n and total:
                ratio = float(y.sum()) / total
                change = 100 * (ratio - 1)
                if n > 1:
                    squares = float((y - ratio * x).square().sum())
                    error = 100 * math.sqrt(n / (n - 1) * squares) / total
            found.update(zip(change_keys(name), (change, error), strict=True))
        return found

    def stored(self) -> StartLosses:
        """Return it as a checkpoint keeps it; what is not finite is not worth keeping."""
        if not bool(self.losses.isfinite().all()):
            return StartLosses()
        return StartLosses(
            self.names, self.images, self.reduction, self.losses.tolist(), self.areas.tolist()
        )

    @classmethod
    def of(cls, stored: StartLosses) -> HeldOut | None:
        """Return what a checkpoint has kept; None if it knows no start."""
        if not stored.images:
            return None
        losses, areas = (
            torch.tensor(values, dtype=torch.float64) for values in (stored.losses, stored.areas)
        )
        return cls(stored.names, stored.images, stored.reduction, losses, areas)

    def _sizes(self) -> Tensor:
        """Return what each image counts, [N, K]."""
        return self.areas if self.reduction == "region" else torch.ones_like(self.areas)
