"""One optimizer step: from a rank's micro-batches to moved parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from fairhuman.config import QUARTERS, Config
from fairhuman.data.dataset import Batch
from fairhuman.data.order import generator
from fairhuman.fairness.forecast import Forecast
from fairhuman.fairness.solve import Solver
from fairhuman.models.encoded import Posterior, Prompt
from fairhuman.models.sdxl import SDXL
from fairhuman.models.text import Tokens
from fairhuman.training import objectives
from fairhuman.training.balancers.amortized import AmortizedBalancer
from fairhuman.training.balancers.base import (
    Balance,
    Balancer,
    ExactBalancer,
    FixedBalancer,
    Sensitivity,
)
from fairhuman.training.balancers.sketch import SketchBalancer
from fairhuman.training.noise import Timesteps, offset, quarter_steps
from fairhuman.training.objectives import RegionObjectives
from fairhuman.training.step_timer import OTHER, StepTimer
from fairhuman.zero.protocol import Engine


class DenoisingTarget(NamedTuple):
    """What `RegionObjectives.losses` compares a prediction with."""

    values: Tensor
    """[B, C, H, W]: the noise, or the velocity."""
    masks: Tensor
    """[B, R, H, W] in [0, 1]."""
    sample_weight: Tensor | None
    """[B], or None for equal weights."""


class Prepared(NamedTuple):
    """A micro-batch as the UNet takes it: about a MiB per sample at 1024 px."""

    noisy: Tensor
    steps: Tensor
    prompt: Prompt | Tokens
    time_ids: Tensor
    control: Tensor | None
    target: DenoisingTarget


class Denoising:
    """The K denoising losses of a batch, with the random numbers of its samples."""

    def __init__(self, sdxl: SDXL, config: Config, device: torch.device) -> None:
        self.sdxl = sdxl
        self.device = device
        self.seed = config.train.seed
        self.gamma = config.objectives.snr_gamma
        self.offset = config.noise.offset
        self.timesteps = Timesteps(config.noise, len(sdxl.alphas_cumprod))
        self.objectives = RegionObjectives(
            config.objectives.regions, config.objectives.reduction, config.objectives.scale
        )

    def losses(self, unet: Any, ready: Prepared, mean_areas: Tensor) -> Tensor:
        """Return the micro-batch's contributions to the K losses; see `RegionObjectives.losses`."""
        return self.objectives.losses(self.predict(unet, ready), *ready.target, mean_areas)

    def prepare(self, batch: Batch) -> Prepared:
        """Encode a micro-batch and draw its noise: all that comes before the UNet."""
        draws = self._draw(batch)
        latents, prompt = self._encoded(batch, draws["posterior"])
        return self._noised(batch, latents, prompt, draws["noise"], draws["step"])

    def quarters(self, batch: Batch) -> Iterator[Prepared]:
        """Prepare a micro-batch at a timestep of each quarter, from the least noisy on.

        Each sample has the same noise in all quarters, and the same place in each. Neither the
        noise's offset nor where training draws its timesteps enters, so that runs compare.
        """
        draws = self._draw(batch, plain=True)
        latents, prompt = self._encoded(batch, draws["posterior"])
        for quarter in range(QUARTERS):
            steps = quarter_steps(draws["step"], self.timesteps.count, quarter)
            yield self._noised(batch, latents, prompt, draws["noise"], steps)

    def _encoded(self, batch: Batch, noise: Tensor) -> tuple[Tensor, Prompt | Tokens]:
        """Return latents and encoded captions, from the batch's cache where it has them.

        Text encoders that are trained encode within the step, so that gradients reach them.
        """
        posterior, prompt = batch.posterior, self._prompt(batch)
        if posterior is None:
            assert batch.pixels is not None
            posterior = self.sdxl.posterior(batch.pixels)
        posterior = Posterior(*_on(posterior, self.device))
        return self.sdxl.latents(posterior, noise), type(prompt)(*_on(prompt, self.device))

    def _prompt(self, batch: Batch) -> Prompt | Tokens:
        if self.sdxl.trains_text:
            return self.sdxl.tokenize(batch.captions)
        return batch.prompt or self.sdxl.encode_captions(batch.captions)

    def _noised(
        self, batch: Batch, latents: Tensor, prompt: Prompt | Tokens, noise: Tensor, steps: Tensor
    ) -> Prepared:
        sdxl = self.sdxl
        noise, steps = noise.to(latents), steps.to(latents.device)
        alphas = sdxl.alphas_cumprod.to(latents.device)
        return Prepared(
            noisy=sdxl.add_noise(latents, noise, steps),
            steps=steps,
            prompt=prompt,
            time_ids=batch.time_ids,
            control=batch.control,
            target=DenoisingTarget(
                objectives.target(sdxl.prediction_type, latents, noise, alphas, steps),
                batch.masks.to(latents.device),
                objectives.snr_weight(sdxl.prediction_type, alphas, steps, self.gamma),
            ),
        )

    def predict(self, unet: Any, ready: Prepared) -> Tensor:
        """Return the UNet's prediction for a micro-batch, [B, C, H, W]."""
        return self.sdxl.predict(
            unet, ready.noisy, ready.steps, ready.prompt, ready.time_ids, ready.control
        )

    def _draw(self, batch: Batch, plain: bool = False) -> dict[str, Tensor]:
        """Draw timestep and noise per sample: the same however the batch is split.

        Args:
            batch: the samples.
            plain: take any timestep, and no offset, whatever the section `noise` says.
        """
        shape = (self.sdxl.vae.config.latent_channels, *batch.masks.shape[2:])
        steps, posterior, noise = [], [], []
        for epoch, name in zip(batch.epochs, batch.ids, strict=True):
            rng = generator(self.seed, epoch, name, "noise")
            step = int(rng.integers(self.timesteps.count))
            if not (plain or self.timesteps.plain):
                # From another stream: the noise below stays what it is with uniform timesteps.
                step = self.timesteps.draw(generator(self.seed, epoch, name, "timestep").random())
            steps.append(step)
            posterior.append(rng.standard_normal(shape, dtype=np.float32))
            drawn = rng.standard_normal(shape, dtype=np.float32)
            if self.offset and not plain:
                drawn += np.float32(self.offset) * offset(self.seed, epoch, name, shape[0])
            noise.append(drawn)
        return {
            "step": torch.tensor(steps),
            "posterior": torch.from_numpy(np.stack(posterior)),
            "noise": torch.from_numpy(np.stack(noise)),
        }


def _on(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    return [tensor.to(device) for tensor in tensors]


class TrainingStep:
    """Moves the parameters by one global batch: all micro-batches of all ranks."""

    def __init__(self, engine: Engine, denoising: Denoising, balancer: Balancer) -> None:
        self.engine = engine
        self.denoising = denoising
        self.balancer = balancer
        self.timer = StepTimer(denoising.device)

    def __call__(self, batches: Sequence[Batch]) -> tuple[list[float | None], Balance]:
        """Take the step; return the K losses of the global batch, None where absent.

        A loss that is not finite is returned as it is. A collective: the same result on every rank.
        """
        device = self.denoising.device
        contributions = len(batches) * dist.get_world_size()
        areas = [RegionObjectives.areas(batch.masks) for batch in batches]
        global_areas = _sum_over_ranks(sum(areas), device)
        present = (global_areas > 0).tolist()
        total = torch.zeros(len(present), dtype=torch.float64, device=device)
        self.balancer.start(present, len(batches))
        self.timer.mark(OTHER)
        ready = [self.denoising.prepare(batch) for batch in batches]
        self.timer.mark("encode")
        for again in range(self.balancer.passes):
            for prepared, area in zip(ready, areas, strict=True):
                losses = self._losses(prepared, area.to(device), global_areas, contributions)
                if not again:
                    total += losses
        balance = self.balancer.step()
        self.timer.mark("update")
        means = _sum_over_ranks(total, device) / contributions
        return [
            float(loss) if here else None for loss, here in zip(means, present, strict=True)
        ], balance

    def _losses(
        self, ready: Prepared, area: Tensor, global_areas: Tensor, contributions: int
    ) -> Tensor:
        """Hand a micro-batch to the balancer; return its contributions to the losses, [K]."""
        objectives, mean_areas = self.denoising.objectives, global_areas / contributions
        pred = self.denoising.predict(self.balancer.model, ready)
        losses = objectives.losses(pred, *ready.target, mean_areas)
        sensitivity = None
        if self.balancer.measures:
            squares = objectives.sensitivity(pred, *ready.target, mean_areas)
            sensitivity = Sensitivity(squares, torch.where(area > 0, area / global_areas, area))
        self.timer.mark("forward")
        self.balancer.backward(losses, sensitivity)
        self.timer.mark("backward")
        return losses.detach().double()


def make_solver(config: Config) -> Solver:
    """Return the solver with a run's settings."""
    fairness = config.fairness
    return Solver(fairness.alpha, fairness.normalize, config.train.max_grad_norm, fairness.floor)


def make_balancer(config: Config, engine: Engine) -> Balancer:
    """Return what `fairness.mode` names."""
    fairness = config.fairness
    count = 1 + len(config.objectives.regions)
    if fairness.mode == "sum":
        return FixedBalancer(engine, [1.0] * count)
    if fairness.mode == "global":
        return FixedBalancer(engine, [1.0] + [0.0] * (count - 1))
    solver = make_solver(config)
    if fairness.mode == "exact":
        return ExactBalancer(engine, solver)
    forecast = Forecast(count, fairness.between, fairness.every)
    if fairness.mode == "amortized":
        return AmortizedBalancer(engine, solver, forecast)
    return SketchBalancer(engine, solver, forecast, fairness.sketch_size)


def _sum_over_ranks(values: Any, device: torch.device) -> Tensor:
    summed: Tensor = values.to(device, torch.float64)
    dist.all_reduce(summed)
    return summed
