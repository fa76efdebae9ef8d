"""What the type of the cached latents costs: how far it moves the loss and its gradient.

python -m fairhuman.planning.cache_precision --model demo/tiny-sdxl --data photographs

For some draws of the data set it compares the loss of the whole image, and its gradient by all
weights of the denoiser, with latents that were stored in each type, with those that were not
stored. To compare with: the denoiser in bf16, as it is trained by default.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from fairhuman.common.quiet import quiet
from fairhuman.common.units import DTYPES
from fairhuman.config import Config
from fairhuman.data.cache import as_stored
from fairhuman.data.dataset import Batch, People
from fairhuman.data.index.load import load
from fairhuman.models.encoded import Posterior
from fairhuman.models.families.registry import check_model
from fairhuman.training.denoising import Denoising
from fairhuman.zero.process_group import init_distributed


def main(argv: Sequence[str] | None = None) -> None:
    """Print the differences."""
    parser = argparse.ArgumentParser(
        prog="python -m fairhuman.planning.cache_precision",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="model.pretrained")
    parser.add_argument("--data", type=Path, required=True, help="data.root")
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--draws", type=int, default=36)
    args = parser.parse_args(argv)
    quiet()
    init_distributed()
    config = Config.model_validate(
        {
            "model": {"pretrained": args.model},
            "data": {
                "root": str(args.data),
                "resolution": args.resolution,
                "crop": "random",
                "unannotated": "absent",
            },
            "train": {"output_dir": "unused", "steps": 1, "precision": "fp32"},
            "deepspeed": {"zero_optimization": {"stage": 2}},
        }
    )
    found: dict[str, list[tuple[float, float]]] = {}
    for differences in islice(_differences(config), args.draws):
        for name, pair in differences.items():
            found.setdefault(name, []).append(pair)
    for name, pairs in found.items():
        losses, gradients = torch.tensor(pairs).unbind(1)
        print(
            f"{name}: loss {losses.mean():.1e} (at most {losses.max():.1e}), "
            f"gradient {gradients.mean():.1e} (at most {gradients.max():.1e})"
        )


def _differences(config: Config) -> Iterator[dict[str, tuple[float, float]]]:
    """Yield for each draw how far loss and gradient are from those without a cache, relatively."""
    device = torch.device("cpu")
    records, _ = load(config)
    family = check_model(config.model).load(config.model, torch.float32, device)
    people = People(records, config.objectives.regions, config.data, config.train.seed, family.cell)
    denoising = Denoising(family, config, device)
    model = family.denoiser.requires_grad_(True)
    half = copy.deepcopy(model).to(torch.bfloat16)
    for epoch in range(10**9):
        for index in range(len(people)):
            batch = people[epoch, index]
            assert batch.pixels is not None
            posterior = family.posterior(batch.pixels)
            loss, gradient = _measure(denoising, model, batch, posterior)

            def difference(
                module: nn.Module, changed: Posterior, batch: Batch = batch,
                loss: Tensor = loss, gradient: Tensor = gradient,
            ) -> tuple[float, float]:  # fmt: skip
                other, moved = _measure(denoising, module, batch, changed)
                away = (moved - gradient).norm() / gradient.norm()
                return float((other - loss).abs() / loss), float(away)

            found = {}
            for name in ("fp32", "fp16", "bf16"):
                stored = as_stored(posterior, DTYPES[name])
                found[name] = difference(model, Posterior(*(part.float() for part in stored)))
            found["fp32, the denoiser in bf16"] = difference(half, posterior)
            yield found


def _measure(
    denoising: Denoising, model: nn.Module, batch: Batch, posterior: Posterior
) -> tuple[Tensor, Tensor]:
    """Return the loss of the whole image, and its gradient as one vector, in float64."""
    prompt = denoising.family.encode_captions(batch.captions)
    cached = replace(batch, pixels=None, posterior=posterior, prompt=prompt)
    ready = denoising.prepare(denoising.load(cached))
    model.zero_grad()
    loss = denoising.losses_of_images(model, ready)[0, 0]
    loss.backward()
    gradients = [
        part.grad.double().reshape(-1) for part in model.parameters() if part.grad is not None
    ]
    return loss.detach().double(), torch.cat(gradients)


if __name__ == "__main__":
    main()
