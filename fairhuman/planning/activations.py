"""What a config's training step holds besides the model, counted on fake tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fairhuman.config import Config
from fairhuman.models.drawing import DRAWN
from fairhuman.models.families.protocol import Family
from fairhuman.models.method import Method
from fairhuman.planning.fake_memory import FakeMemory, make_fake
from fairhuman.training.objectives import RegionObjectives


@dataclass(frozen=True)
class Activations:
    """Bytes of one rank, at their highest."""

    encoding: int
    """The VAE encodes an image, in `model.vae_precision`."""
    drawing: int
    """It decodes a sample picture, or the denoiser draws several with classifier-free guidance."""
    inputs: int
    """What the step's micro-batches hold until the denoiser has taken them."""
    forward: int
    """A forward pass of one micro-batch, without gradients."""
    step: int
    """Forward and backward pass of one micro-batch, saved activations and all."""


def count(config: Config, family: Family, method: Method, dtype: torch.dtype) -> Activations:
    """Count the activations of a config's step, in seconds, whatever the model's size.

    One forward and one backward pass of what the method trains, with the config's batch size,
    resolution and checkpointing. Where the mode goes through the graph more than once, the pass
    keeps it. Parameters' gradients count until they are whole, when ZeRO takes them.

    As on a GPU with fused attention (xformers' or torch's flash or memory-efficient kernels);
    compiled blocks are counted as if they were not, and need less.

    Args:
        config: with buckets, the square counts: no bucket's area is larger.
        family: on the meta device; changed in place.
        method: what is trained of it.
        dtype: that of `train.precision`.
    """
    with FakeTensorMode():
        make_fake(family.vae, torch.float32)
        make_fake(method.module, dtype)
        encoding, decoding = _vae(config, family)
        inputs, forward, step = _passes(config, family, method.module, dtype)
    drawing = max(decoding, forward * _guided(config) // config.train.batch_size)
    return Activations(
        encoding,
        drawing=drawing * _largest(config) // config.data.resolution**2,
        inputs=inputs * config.train.gradient_accumulation,
        forward=forward,
        step=step,
    )


def _guided(config: Config) -> int:
    """Return how many samples the denoiser draws together, twice as many with guidance."""
    train = config.train
    own = [asked.guidance for asked in train.sample_prompts if asked.guidance is not None]
    return min(len(train.sample_prompts) or DRAWN, DRAWN) * (
        1 + (max([train.sample_guidance, *own]) > 1)
    )


def _largest(config: Config) -> int:
    """Return the pixels of the largest sample."""
    train, side = config.train, config.data.resolution
    own = [asked.size for asked in train.sample_prompts if asked.size]
    return max(math.prod(size) for size in [train.sample_size or (side, side), *own])


def _vae(config: Config, family: Family) -> tuple[int, int]:
    vae, side = family.vae, config.data.resolution
    with FakeMemory(_held(vae)) as encoding:
        family.posterior(torch.empty(1, 3, side, side))  # one image at a time
    cells = side // int(family.pipeline.vae_scale_factor)
    with FakeMemory(_held(vae)) as decoding, torch.no_grad():
        vae.decode(torch.empty(1, vae.config.latent_channels, cells, cells))
    return encoding.peak, decoding.peak


def _passes(
    config: Config, family: Family, module: nn.Module, dtype: torch.dtype
) -> tuple[int, int, int]:
    """Return the bytes of the inputs, and those of the passes above them."""
    batch, side = config.train.batch_size, config.data.resolution
    control = torch.empty(batch, 3, side, side) if config.model.conditioned else None
    held = _held(module) + ([] if control is None else [control])  # it comes from the host
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_take)
    objectives = RegionObjectives(
        config.objectives.regions, config.objectives.reduction, config.objectives.scale
    )
    keeps_graph = config.fairness.solves and len(objectives.names) > 1
    with FakeMemory(held) as without, torch.no_grad():
        noisy, target, masks, steps, prompt, time_ids = _inputs(config, family)
        inputs = without.live
        family.predict(module, noisy, steps, prompt, time_ids, control)
    conditions = [part for part in prompt if part is not None]
    given = [noisy, target, masks, steps, *conditions, time_ids]
    with FakeMemory([*held, *given]) as training:
        prediction = family.predict(module, noisy, steps, prompt, time_ids, control)
        losses = objectives.losses(prediction, target, masks, None, RegionObjectives.areas(masks))
        losses[0].backward(retain_graph=keeps_graph)
    return inputs, without.peak - inputs, training.peak


def _inputs(config: Config, family: Family) -> tuple[Any, ...]:
    """Return a micro-batch as the trainer prepares it: latents, target, masks, conditions."""
    batch, side = config.train.batch_size, config.data.resolution // family.cell
    shape = (batch, family.channels, side, side)
    return (
        torch.empty(shape),
        torch.empty(shape),
        torch.empty(batch, len(config.objectives.regions), side, side),
        torch.empty(batch, dtype=torch.int64),
        family.empty_prompt(batch),
        torch.empty(batch, 6),
    )


def _held(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _take(parameter: Tensor) -> None:
    parameter.grad = None
