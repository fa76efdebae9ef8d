"""Which timestep a sample is noised to, and how the noise of latents is shifted."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from fairhuman.common.errors import ConfigError
from fairhuman.config import QUARTERS, Noise
from fairhuman.data.order import generator


class Timesteps:
    """Draws one timestep per sample, as the section `noise` says.

    Args:
        noise: the section.
        count: of the model's timesteps.

    Raises:
        ConfigError: no timestep is left to draw.
    """

    def __init__(self, noise: Noise, count: int) -> None:
        self.count = count
        last = count if noise.max_timestep is None else noise.max_timestep
        if last > count:
            raise ConfigError(
                f"noise.max_timestep = {last}: the model has {count} timesteps; give {count} or "
                "less, or null"
            )
        if noise.min_timestep >= last:
            raise ConfigError(
                f"noise.min_timestep = {noise.min_timestep}: must be less than {last}, where the "
                "timesteps end"
            )
        self.plain = noise.timesteps == "uniform" and (noise.min_timestep, last) == (0, count)
        """Whether all are equally likely."""
        self.probabilities = _density(noise, count)
        """Of each timestep, [count] float64."""
        self.probabilities[: noise.min_timestep] = 0.0
        self.probabilities[last:] = 0.0
        total = self.probabilities.sum()
        if total <= 0:
            raise ConfigError(
                f"noise.timesteps = {noise.timesteps!r}: never draws a timestep from "
                f"{noise.min_timestep} to {last - 1}; widen noise.min_timestep to "
                "noise.max_timestep, or draw otherwise"
            )
        self.probabilities /= total
        self._edges = np.cumsum(self.probabilities)
        self._last = int(np.flatnonzero(self.probabilities)[-1])

    def draw(self, uniform: float) -> int:
        """Return the timestep that a number from [0, 1) falls to, by the inverse distribution."""
        # The edges' sum may round to less than 1.
        return min(int(np.searchsorted(self._edges, uniform, side="right")), self._last)


def _density(noise: Noise, count: int) -> np.ndarray:
    """Return how likely each timestep is compared with the others, [count].

    `earlier`, `later` and `range` are diffusers' `timestep_bias_strategy`. `logit_normal`: t =
    floor(count * sigmoid(z)), z normal (Esser et al. 2024, arXiv 2403.03206, eq. 19).
    """
    if noise.timesteps == "logit_normal":
        edges = [0.0, *(_logit_cdf(noise, i / count) for i in range(1, count)), 1.0]
        return np.diff(edges)
    density = np.ones(count)
    portion = int(noise.bias_portion * count)
    if noise.timesteps == "earlier":
        density[:portion] *= noise.bias
    elif noise.timesteps == "later":
        density[count - portion :] *= noise.bias
    elif noise.timesteps == "range" and noise.bias_range:
        first, end = noise.bias_range
        if end > count:
            raise ConfigError(
                f"noise.bias_range = {list(noise.bias_range)}: the model has {count} timesteps; "
                f"end it at {count} or before"
            )
        density[first:end] *= noise.bias
    return density


def _logit_cdf(noise: Noise, x: float) -> float:
    z = (math.log(x / (1 - x)) - noise.logit_mean) / noise.logit_std
    return 0.5 * math.erfc(-z / math.sqrt(2))


def offset(seed: int, epoch: int, sample: str, channels: int) -> np.ndarray:
    """Return a sample's standard normal shift of each channel, [C, 1, 1] float32.

    From a stream of its own, so that noise and timesteps do not depend on whether it is used.
    """
    rng = generator(seed, epoch, sample, "offset")
    return rng.standard_normal((channels, 1, 1), dtype=np.float32)


def quarter_steps(steps: Tensor, count: int, quarter: int) -> Tensor:
    """Return timesteps, drawn from all `count`, moved into a quarter of them.

    Each keeps its place in the whole: from t / count of the whole to t / count of the quarter.
    """
    first, end = (count * (quarter + i) // QUARTERS for i in (0, 1))
    return first + steps * (end - first) // count
