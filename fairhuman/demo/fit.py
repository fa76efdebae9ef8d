"""Fits the tiny SDXL to pictures for a short while, so that the demo starts from a model.

A stand-in for the pre-training that the real SDXL comes with: first the VAE, then the UNet with
the plain denoising loss. Not a trainer: one process, one fixed recipe.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from fairhuman.models.families.sdxl.model import SDXL

Progress = Callable[[str, int, int, float], None]
"""Called with stage, step, steps and loss."""

VAE_STEPS = 700
"""Steps of `fit_vae`."""
UNET_STEPS = 750
"""Steps of `fit_unet`."""

_LATENT_NOISE = 0.03
"""Standard deviation of the VAE's posterior, of a latent's own."""


def fit_vae(
    vae: Any,
    pixels: Tensor,
    *,
    steps: int = VAE_STEPS,
    seed: int,
    progress: Progress,
    batch: int = 4,
) -> None:
    """Fit the VAE to pictures [N, 3, H, W] in [-1, 1], then whiten its latents.

    An autoencoder with a little noise on its latents. Trained on crops, because the network is
    convolutional; few a step, because it is the number of steps that it lacks.
    """
    rng = torch.Generator().manual_seed(seed)
    optimizers = _optimizers(vae, muon_lr=0.01, adam_lr=3e-3, steps=steps)
    side = min(64, pixels.shape[-1])
    cell = 2 ** (len(vae.config.block_out_channels) - 1)
    vae.to(memory_format=torch.channels_last)  # faster convolutions on a CPU
    vae.train()
    for step in range(1, steps + 1):
        crops = _crops(pixels, side, cell, batch, rng).contiguous(memory_format=torch.channels_last)
        latents = vae.encode(crops).latent_dist.mean
        noise = torch.randn(latents.shape, generator=rng) * latents.detach().std()
        decoded = vae.decode(latents + _LATENT_NOISE * noise).sample
        # Edges carry the eyes and fingers, which are a few per cent of the pixels.
        loss = F.l1_loss(decoded, crops) + F.mse_loss(decoded, crops)
        loss = loss + 0.5 * _edge_loss(decoded, crops)
        # At first three latents are drawn to the cell's colour; left alone, the network takes
        # hundreds of steps to find that colours matter.
        hint = 1 - 4 * step / steps
        if hint > 0:
            loss = loss + hint * F.mse_loss(latents[:, :3], F.avg_pool2d(crops, cell))
        _step(vae, loss, optimizers)
        progress("VAE", step, steps, loss.item())
    vae.to(memory_format=torch.contiguous_format)  # safetensors writes no other
    vae.eval()
    _whiten(vae, pixels)


def fit_unet(
    sdxl: SDXL,
    pixels: Tensor,
    captions: Sequence[str],
    time_ids: Tensor,
    *,
    steps: int = UNET_STEPS,
    seed: int,
    progress: Progress,
    batch: int = 16,
) -> None:
    """Fit the UNet to pictures with their captions; a tenth of the captions is dropped.

    Args:
        sdxl: with the VAE already fitted.
        pixels: [N, 3, H, W] in [-1, 1].
        captions: N texts.
        time_ids: [6], the micro-conditioning of all pictures.
        steps: optimizer steps.
        seed: of order, noise and timesteps.
        progress: told of every step.
        batch: samples per step.
    """
    rng = torch.Generator().manual_seed(seed)
    unet = sdxl.denoiser
    latents = _encode(sdxl.vae, pixels) * sdxl.vae.config.scaling_factor
    prompts = sdxl.encode_captions(list(captions))
    dropped = sdxl.encode_captions([None])
    optimizers = _optimizers(unet, muon_lr=0.01, adam_lr=2e-3, steps=steps)
    unet.train()
    for step in range(1, steps + 1):
        index = torch.randint(len(latents), (batch,), generator=rng)
        times = torch.randint(sdxl.noising.count, (batch,), generator=rng)
        noise = torch.randn(batch, *latents.shape[1:], generator=rng)
        keep = torch.rand(batch, generator=rng) >= 0.1
        prompt = type(prompts)(
            torch.where(keep[:, None, None], prompts.embeds[index], dropped.embeds),
            torch.where(keep[:, None], prompts.pooled[index], dropped.pooled),
        )
        noisy = sdxl.noising.add_noise(latents[index], noise, times)
        pred = sdxl.predict(unet, noisy, times, prompt, time_ids.expand(batch, -1))
        weight = sdxl.noising.sample_weight(times, gamma=5.0)
        assert weight is not None
        loss = ((pred - noise).square().mean(dim=(1, 2, 3)) * weight).mean()
        _step(unet, loss, optimizers)
        progress("UNet", step, steps, loss.item())
    unet.eval()


class _Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised (Muon), kernels taken as matrices.

    torch.optim.Muon takes no kernels. The VAE needs fewer steps with it than with AdamW alone.
    """

    def __init__(self, params: Sequence[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            alike = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    alike[weight.flatten(1).shape].append(weight)
            # Matrices of one shape together: their number is what takes time, not their size.
            for (rows, columns), weights in alike.items():
                grads = torch.stack([weight.grad.flatten(1) for weight in weights])
                average = self.state[weights[0]].setdefault("average", torch.zeros_like(grads))
                average.lerp_(grads, 1 - group["momentum"])
                updates = _orthogonal(grads.lerp(average, group["momentum"]))
                rate = group["lr"] * max(1.0, rows / columns) ** 0.5
                for weight, update in zip(weights, updates, strict=True):
                    weight.sub_(update.reshape(weight.shape), alpha=rate)


def _orthogonal(matrices: Tensor) -> Tensor:
    """Return about the nearest orthogonal matrices [N, R, C], by Muon's Newton-Schulz iteration."""
    if matrices.shape[1] > matrices.shape[2]:
        return _orthogonal(matrices.mT).mT
    matrices = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = matrices @ matrices.mT
        matrices = 3.4445 * matrices + (2.0315 * gram @ gram - 4.7750 * gram) @ matrices
    return matrices


def _optimizers(
    module: nn.Module, *, muon_lr: float, adam_lr: float, steps: int
) -> list[tuple[torch.optim.Optimizer, LambdaLR]]:
    """Return Muon for the matrices and kernels, AdamW for the rest, and their schedules.

    As is usual with Muon, the first and last convolutions are left to AdamW.
    """
    muon: list[nn.Parameter] = []
    adam: list[nn.Parameter] = []
    for name, weight in module.named_parameters():
        outer = "conv_in." in name or "conv_out." in name
        (adam if weight.ndim < 2 or outer else muon).append(weight)

    def rate(step: int) -> float:
        # Down to nothing, in place of an average of the weights.
        return min(1.0, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / steps))

    both: list[torch.optim.Optimizer] = [
        _Muon(muon, muon_lr),
        torch.optim.AdamW(adam, adam_lr, betas=(0.9, 0.99), weight_decay=1e-4),
    ]
    return [(optimizer, LambdaLR(optimizer, rate)) for optimizer in both]


def _step(
    module: nn.Module, loss: Tensor, optimizers: Sequence[tuple[torch.optim.Optimizer, LambdaLR]]
) -> None:
    module.zero_grad()
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    for optimizer, schedule in optimizers:
        optimizer.step()
        schedule.step()


def _crops(pixels: Tensor, side: int, cell: int, count: int, rng: torch.Generator) -> Tensor:
    index = torch.randint(len(pixels), (count,), generator=rng).tolist()
    # Steps of a latent cell, so that crops have the cells that whole pictures have.
    span = (pixels.shape[-1] - side) // cell + 1
    corners = torch.randint(span, (count, 2), generator=rng).mul(cell).tolist()
    return torch.stack(
        [
            pixels[i, :, top : top + side, left : left + side]
            for i, (top, left) in zip(index, corners, strict=True)
        ]
    )


def _edge_loss(decoded: Tensor, target: Tensor) -> Tensor:
    across = F.l1_loss(decoded.diff(dim=-1), target.diff(dim=-1))
    return across + F.l1_loss(decoded.diff(dim=-2), target.diff(dim=-2))


@torch.no_grad()
def _whiten(vae: Any, pixels: Tensor) -> None:
    """Make the latents' channels uncorrelated, of mean 0 and deviation 1.

    The change is folded into the convolutions on either side of the latents, so the pictures
    stay the same, and SDXL's scaling factor, which makes the deviation 1, becomes 1. The
    posterior gets the deviation that the decoder was fitted to.
    """
    values = _encode(vae, pixels).transpose(0, 1).flatten(1)
    count, mean = len(values), values.mean(dim=1)
    variances, axes = torch.linalg.eigh(torch.cov(values))
    deviations = variances.clamp_min(1e-8).sqrt()
    whiten = axes / deviations @ axes.T
    colour = axes * deviations @ axes.T
    into, out = vae.quant_conv, vae.post_quant_conv
    into.weight[:count] = torch.einsum("ij,jkhw->ikhw", whiten, into.weight[:count])
    into.bias[:count] = whiten @ (into.bias[:count] - mean)
    into.weight[count:] = 0
    into.bias[count:] = 2 * math.log(_LATENT_NOISE)
    out.bias += out.weight[:, :, 0, 0] @ mean
    out.weight[:, :, 0, 0] = out.weight[:, :, 0, 0] @ colour
    vae.register_to_config(scaling_factor=1.0)


@torch.no_grad()
def _encode(vae: Any, pixels: Tensor) -> Tensor:
    return torch.cat([vae.encode(part).latent_dist.mean for part in pixels.split(32)])
