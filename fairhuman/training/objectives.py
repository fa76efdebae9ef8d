"""The K losses of a batch: of the whole image and of each region."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fairhuman.common.transfer import to_device
from fairhuman.fairness.ops import region_mse

GLOBAL = "global"


class RegionObjectives:
    """The K = 1 + R losses of a global batch that arrives in micro-batches.

    The losses of a step are those of the whole accumulated batch over all ranks. Each
    micro-batch contributes `losses(...)`, and the mean of the contributions over micro-batches
    and ranks is the loss of the step: a region's mask area is a sum over the whole batch, so
    under `reduction: region` a micro-batch counts by its share of that area.
    """

    def __init__(self, regions: Sequence[str], reduction: str, scale: dict[str, float]) -> None:
        self.names = [GLOBAL, *regions]
        self.reduction = reduction
        self.scale = torch.tensor([scale.get(name, 1.0) for name in self.names])

    @staticmethod
    def areas(masks: Tensor) -> Tensor:
        """Return the area of the whole and of each region in a micro-batch, [K] float64.

        In cells of the latent grid; `masks` is [B, R, H, W].
        """
        batch, _, height, width = masks.shape
        whole = masks.new_full((1,), batch * height * width, dtype=torch.float64)
        return torch.cat([whole, masks.double().sum(dim=(0, 2, 3))])

    def losses(
        self,
        pred: Tensor,
        target: Tensor,
        masks: Tensor,
        sample_weight: Tensor | None,
        mean_areas: Tensor,
    ) -> Tensor:
        """Return this micro-batch's contribution to the K losses, [K].

        Args:
            pred: [B, C, H, W]; also target.
            target: what the model should have predicted.
            masks: [B, R, H, W] in [0, 1].
            sample_weight: [B] or None.
            mean_areas: [K], the areas of the step's micro-batches, averaged over micro-batches
                and ranks.
        """
        losses = region_mse(pred, target, masks, sample_weight, self.reduction)
        self.scale = factor = to_device(self.scale, losses.device).to(losses)  # moved once
        if self.reduction == "region":
            area = self.areas(masks)
            share = area / mean_areas.to(area).clamp(min=torch.finfo(torch.float64).tiny)
            factor = factor * share.to(losses)
        return losses * factor

    def of_images(
        self, pred: Tensor, target: Tensor, masks: Tensor, sample_weight: Tensor | None
    ) -> Tensor:
        """Return the K losses of each image by itself, [B, K], without `objectives.scale`.

        With `reduction: region` divided by the region's area in that image; 0 where it has none.
        The arguments are those of `losses`.
        """
        found = []
        for i in range(len(pred)):
            weight = None if sample_weight is None else sample_weight[i : i + 1]
            p, y, m = (part[i : i + 1] for part in (pred, target, masks))
            found.append(region_mse(p, y, m, weight, self.reduction))
        return torch.stack(found)

    def sensitivity(
        self,
        pred: Tensor,
        target: Tensor,
        masks: Tensor,
        sample_weight: Tensor | None,
        mean_areas: Tensor,
    ) -> Tensor:
        """Return ||dl_k/dp||^2 of what `losses` returns for the same arguments, [K] float64.

        Touches the prediction only, never the model behind it.
        """
        # In float32, for gradients as small as 1 / numel vanish in fp16.
        leaf = pred.detach().to(torch.promote_types(pred.dtype, torch.float32)).requires_grad_()
        squares = []
        with torch.enable_grad():
            for loss in self.losses(leaf, target, masks, sample_weight, mean_areas):
                (gradient,) = torch.autograd.grad(loss, leaf, retain_graph=True)
                squares.append(gradient.double().square().sum())
        return torch.stack(squares)
