"""One optimizer step: from a rank's micro-batches to moved parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from fairhuman import objectives
from fairhuman.config import Config
from fairhuman.data.dataset import Batch
from fairhuman.data.order import generator
from fairhuman.fairness.balancer import Balance, Balancer, ExactBalancer, FixedBalancer
from fairhuman.models.sdxl import SDXL
from fairhuman.objectives import Objectives


class Denoising:
    """The K denoising losses of a batch, with the random numbers of its samples."""

    def __init__(self, sdxl: SDXL, config: Config, device: torch.device) -> None:
        self.sdxl = sdxl
        self.device = device
        self.seed = config.train.seed
        self.gamma = config.objectives.snr_gamma
        self.objectives = Objectives(
            config.objectives.regions, config.objectives.reduction, config.objectives.scale
        )

    def losses(self, unet: Any, batch: Batch, mean_area: Tensor) -> Tensor:
        """Return the micro-batch's contributions to the K losses; see `Objectives.losses`."""
        sdxl = self.sdxl
        draws = self._draw(batch)
        latents = sdxl.encode_images(batch.pixels, draws["posterior"])
        noise, steps = draws["noise"].to(latents), draws["step"].to(latents.device)
        noisy = sdxl.add_noise(latents, noise, steps)
        prompt = sdxl.encode_captions(batch.captions)
        pred = sdxl.predict(unet, noisy, steps, prompt, batch.time_ids)
        alphas = sdxl.alphas_cumprod.to(latents.device)
        return self.objectives.losses(
            pred,
            objectives.target(sdxl.prediction_type, latents, noise, alphas, steps),
            batch.masks.to(latents.device),
            objectives.snr_weight(sdxl.prediction_type, alphas, steps, self.gamma),
            mean_area,
        )

    def _draw(self, batch: Batch) -> dict[str, Tensor]:
        """Draw timestep and noise per sample: the same however the batch is split."""
        shape = (self.sdxl.vae.config.latent_channels, *batch.masks.shape[2:])
        steps, posterior, noise = [], [], []
        for epoch, name in zip(batch.epochs, batch.ids, strict=True):
            rng = generator(self.seed, epoch, name, "noise")
            steps.append(int(rng.integers(len(self.sdxl.alphas_cumprod))))
            posterior.append(rng.standard_normal(shape, dtype=np.float32))
            noise.append(rng.standard_normal(shape, dtype=np.float32))
        return {
            "step": torch.tensor(steps),
            "posterior": torch.from_numpy(np.stack(posterior)),
            "noise": torch.from_numpy(np.stack(noise)),
        }


class TrainingStep:
    """Moves the parameters by one global batch: all micro-batches of all ranks."""

    def __init__(self, engine: Any, denoising: Denoising, balancer: Balancer) -> None:
        self.engine = engine
        self.denoising = denoising
        self.balancer = balancer

    def __call__(self, batches: Sequence[Batch]) -> tuple[list[float | None], Balance]:
        """Take the step; return the K losses of the global batch, None where absent.

        A collective: the same result on every rank.
        """
        device = self.denoising.device
        contributions = len(batches) * dist.get_world_size()
        mean_area = _sum_over_ranks(sum(Objectives.area(batch.masks) for batch in batches), device)
        mean_area /= contributions
        present = (mean_area > 0).tolist()
        total = torch.zeros(len(present), dtype=torch.float64, device=device)
        self.balancer.start(present, len(batches))
        for batch in batches:
            losses = self.denoising.losses(self.engine, batch, mean_area)
            total += losses.detach().double()
            self.balancer.backward(losses)
        balance = self.balancer.step()
        means = _sum_over_ranks(total, device) / contributions
        return [
            float(loss) if here and torch.isfinite(loss) else None
            for loss, here in zip(means, present, strict=True)
        ], balance


def make_balancer(config: Config, engine: Any) -> Balancer:
    """Return what `fairness.mode` names."""
    regions = len(config.objectives.regions)
    if config.fairness.mode == "sum":
        return FixedBalancer(engine, [1.0] * (1 + regions))
    if config.fairness.mode == "global":
        return FixedBalancer(engine, [1.0] + [0.0] * regions)
    return ExactBalancer(
        engine, config.fairness.alpha, config.fairness.normalize, config.train.max_grad_norm
    )


def _sum_over_ranks(values: Any, device: torch.device) -> Tensor:
    summed: Tensor = values.to(device, torch.float64)
    dist.all_reduce(summed)
    return summed
