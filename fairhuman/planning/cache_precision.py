"""What the type of the cached latents costs: how far it moves the loss and its gradient.

python -m fairhuman.planning.cache_precision --model demo/tiny-sdxl --data photographs

For some draws of the data set it compares the loss of the whole image, and its gradient by all
weights of the denoiser, with latents that were stored in each type, with those that were not
stored. To compare with: the denoiser's products in bf16, in which it is trained by default.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count, islice
from pathlib import Path

import torch
from torch import Tensor

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
    found: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as index:
        data = {"root": str(args.data), "index": index, "resolution": args.resolution}
        config = Config.model_validate(
            {
                "model": {"pretrained": args.model},
                "data": {**data, "crop": "random", "unannotated": "absent"},
                "train": {"output_dir": "unused", "steps": 1, "precision": "fp32"},
                "deepspeed": {"zero_optimization": {"stage": 2}},
            }
        )
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
    records, _ = load(config)
    device = torch.device("cpu")
    family = check_model(config.model).load(config.model, torch.float32, device)
    family.denoiser.requires_grad_(True)
    people = People(records, config.objectives.regions, config.data, config.train.seed, family.cell)
    denoising = Denoising(family, config, device)
    for place in count():
        batch = people[divmod(place, len(people))]
        assert batch.pixels is not None
        posterior = family.posterior(batch.pixels)
        plain = _measure(denoising, batch, posterior)
        found = {}
        for name, dtype in DTYPES.items():
            stored = Posterior(*(part.float() for part in as_stored(posterior, dtype)))
            found[name] = _away(plain, _measure(denoising, batch, stored))
        found["not stored, in bf16"] = _away(
            plain, _measure(denoising, batch, posterior, half=True)
        )
        yield found


def _measure(
    denoising: Denoising, batch: Batch, posterior: Posterior, half: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the loss of the whole image, and its gradient as one vector."""
    model = denoising.family.denoiser
    ready = denoising.prepare(denoising.load(replace(batch, pixels=None, posterior=posterior)))
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        loss = denoising.losses_of_images(model, ready)[0, 0]
    loss.backward()
    gradients = [part.grad.reshape(-1) for part in model.parameters() if part.grad is not None]
    return loss.detach().double(), torch.cat(gradients).double()


def _away(plain: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """Return the relative differences of two losses and of two gradients."""
    loss, gradient = (float((b - a).norm() / a.norm()) for a, b in zip(plain, other, strict=True))
    return loss, gradient


if __name__ == "__main__":
    main()
