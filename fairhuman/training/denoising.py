"""The denoising losses of a micro-batch: its random numbers, its inputs, the prediction."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fairhuman.common.transfer import to_device
from fairhuman.config import QUARTERS, Config
from fairhuman.data.dataset import Batch
from fairhuman.data.order import generator
from fairhuman.models.families.protocol import Family
from fairhuman.training.noise import Timesteps, offset, quarter_steps
from fairhuman.training.objectives import RegionObjectives


class DenoisingTarget(NamedTuple):
    """What `RegionObjectives.losses` compares a prediction with."""

    values: Tensor
    """[B, C, H, W]."""
    masks: Tensor
    """[B, R, H, W] in [0, 1]."""
    sample_weight: Tensor | None
    """[B], or None for equal weights."""


class Draws(NamedTuple):
    """A micro-batch's random numbers."""

    steps: Tensor
    """[B] int64 timesteps."""
    posterior: Tensor
    """[B, C, H, W] float32 standard normal: the draw from the VAE's posterior."""
    noise: Tensor
    """[B, C, H, W] float32."""


class MicroBatch(NamedTuple):
    """Samples on the device, with their random numbers."""

    batch: Batch
    draws: Draws
    area: Tensor
    """[K] float64, of the objectives, in cells of the latent grid."""


class Prepared(NamedTuple):
    """A micro-batch as the denoiser takes it: about a MiB per sample at 1024 px."""

    noisy: Tensor
    steps: Tensor
    prompt: Any
    """The captions, encoded or for text encoders that are trained."""
    time_ids: Tensor
    control: Tensor | None
    target: DenoisingTarget


class Denoising:
    """The K denoising losses of a batch, with the random numbers of its samples."""

    def __init__(self, family: Family, config: Config, device: torch.device) -> None:
        self.family = family
        self.device = device
        family.noising.to(device)
        self.seed = config.train.seed
        self.gamma = config.objectives.snr_gamma
        self.offset = config.noise.offset
        self.timesteps = Timesteps(config.noise, family.noising.count)
        self.objectives = RegionObjectives(
            config.objectives.regions, config.objectives.reduction, config.objectives.scale
        )

    def losses_of_images(self, model: Any, ready: Prepared) -> Tensor:
        """Return the K losses of each image, [B, K]; see `RegionObjectives.of_images`."""
        return self.objectives.of_images(self.predict(model, ready), *ready.target)

    def load(self, batch: Batch) -> MicroBatch:
        """Draw a micro-batch's noise and move all of it to the device, without waiting for it."""
        area = RegionObjectives.areas(batch.masks)
        return MicroBatch(batch.to(self.device), self._draw(batch), to_device(area, self.device))

    def prepare(self, loaded: MicroBatch) -> Prepared:
        """Encode a micro-batch and add its noise: all that comes before the denoiser."""
        batch, (steps, posterior, noise), _ = loaded
        latents, prompt = self._encoded(batch, posterior)
        return self._noised(batch, latents, prompt, noise, steps)

    def quarters(self, batch: Batch) -> Iterator[Prepared]:
        """Prepare a micro-batch at a timestep of each quarter, from the least noisy on.

        Each sample has the same noise in all quarters, and the same place in each. Neither the
        noise's offset nor where training draws its timesteps enters, so that runs compare.
        """
        batch, draws = batch.to(self.device), self._draw(batch, plain=True)
        latents, prompt = self._encoded(batch, draws.posterior)
        for quarter in range(QUARTERS):
            steps = quarter_steps(draws.steps, self.timesteps.count, quarter)
            yield self._noised(batch, latents, prompt, draws.noise, steps)

    def _encoded(self, batch: Batch, noise: Tensor) -> tuple[Tensor, Any]:
        """Return latents and encoded captions, from the batch's cache where it has them.

        Text encoders that are trained encode within the step, so that gradients reach them.
        """
        posterior, prompt = batch.posterior, self._prompt(batch)
        if posterior is None:
            assert batch.pixels is not None
            posterior = self.family.posterior(batch.pixels)
        prompt = type(prompt)(*(to_device(part, self.device) for part in prompt))
        return self.family.latents(posterior, noise), prompt

    def _prompt(self, batch: Batch) -> Any:
        if self.family.trains_text:
            return self.family.tokenize(batch.captions)
        return batch.prompt or self.family.encode_captions(batch.captions)

    def _noised(
        self, batch: Batch, latents: Tensor, prompt: Any, noise: Tensor, steps: Tensor
    ) -> Prepared:
        noising, noise = self.family.noising, noise.to(latents)
        return Prepared(
            noisy=noising.add_noise(latents, noise, steps),
            steps=steps,
            prompt=prompt,
            time_ids=batch.time_ids,
            control=batch.control,
            target=DenoisingTarget(
                noising.target(latents, noise, steps),
                batch.masks,
                noising.sample_weight(steps, self.gamma),
            ),
        )

    def predict(self, model: Any, ready: Prepared) -> Tensor:
        """Return the prediction for a micro-batch, [B, C, H, W]."""
        return self.family.predict(
            model, ready.noisy, ready.steps, ready.prompt, ready.time_ids, ready.control
        )

    def _draw(self, batch: Batch, plain: bool = False) -> Draws:
        """Draw timestep and noise per sample: the same however the batch is split.

        Args:
            batch: the samples.
            plain: take any timestep, and no offset, whatever the section `noise` says.
        """
        shape = (self.family.channels, *batch.masks.shape[2:])
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
        numbers = (torch.from_numpy(np.stack(drawn)) for drawn in (posterior, noise))
        return Draws(*(to_device(part, self.device) for part in (torch.tensor(steps), *numbers)))
