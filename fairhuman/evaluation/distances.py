"""FID and KID by torchmetrics, on Inception's features of clean-fid's images.

The network is the one of both metrics' papers in the TorchScript form that StyleGAN and clean-fid
use. It is one file that brings its own code, so that torchvision is not needed. Images are resized
as in clean-fid (arXiv 2104.11222): by Pillow's bicubic filter, channel by channel, not rounded.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from fairhuman.common.error_text import first_line
from fairhuman.common.errors import UserError
from fairhuman.common.extras import install_line
from fairhuman.evaluation.figures import Figure, Measured
from fairhuman.evaluation.images import bicubic
from fairhuman.evaluation.missing import MissingError
from fairhuman.evaluation.picture_pairs import Pictures

METRICS = ("fid", "kid")
SIDE = 299
"""Pixels: Inception's input."""
SUBSETS, SUBSET = 100, 1000
"""How many subsets KID is the mean of, and the size of each where there are as many images."""

URL = (
    "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/"
    "inception-2015-12-05.pt"
)


def prepare(
    wanted: Sequence[str],
    pictures: Pictures,
    reference: Pictures | None,
    inception: Path | None,
    *,
    seed: int,
    device: torch.device,
    batch_size: int,
) -> Callable[[], Measured]:
    """Load Inception; return what measures `fid` and `kid`, whichever are wanted.

    Args:
        wanted: of METRICS.
        pictures: at least two.
        reference: what they should be like, at least two.
        inception: the network's file, see URL.
        seed: of KID's subsets.
        device: where the features are computed.
        batch_size: of the features.

    Raises:
        MissingError: there is no reference, no network or no torchmetrics.
        UserError: the file is not such a network.
    """
    if reference is None:
        raise MissingError("needs pictures to compare with: give --reference FOLDER")
    if inception is None:
        raise MissingError(f"needs Inception's weights: curl -LO {URL}, then give --inception FILE")
    if min(len(pictures), len(reference)) < 2:
        raise MissingError("needs at least two pictures in --images and in --reference")
    _need_torchmetrics()
    network = Inception(inception, device)

    def measure() -> Measured:
        fake = features(network, pictures, batch_size)
        real = features(network, reference, batch_size)
        settings: dict[str, Any] = {
            "reference": str(reference.root),
            "reference_count": len(reference),
            "inception": str(inception),
            "inception_sha256": hashlib.sha256(inception.read_bytes()).hexdigest(),
            "resize": "clean-fid",
        }
        made = {"fid": lambda: fid(real, fake), "kid": lambda: kid(real, fake, seed)}
        return Measured(
            [made[metric]() for metric in wanted],
            settings=dict.fromkeys(wanted, settings),
            packages=("torchmetrics",),
        )

    return measure


class Inception(nn.Module):
    """Inception-2015-12-05 without its own resizing.

    Args:
        path: a TorchScript archive whose submodule `layers` maps [B, 3, 299, 299] in [-1, 1] to
            features [B, D].
        device: where to compute.

    Raises:
        UserError: it is no such archive.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        super().__init__()
        if not path.is_file():
            raise UserError(f"--inception {path}: there is no such file; it is at {URL}")
        try:
            with warnings.catch_warnings():
                # torch.export has no reader for these archives.
                warnings.simplefilter("ignore", DeprecationWarning)
                self.layers = torch.jit.load(str(path), map_location=device).eval().layers
        except (RuntimeError, AttributeError, ValueError) as error:
            raise UserError(
                f"--inception {path}: is not the TorchScript Inception of {URL}: "
                f"{first_line(error)}"
            ) from None
        self.device = device

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Map images [B, 3, 299, 299] in [0, 255] to features [B, D], float64 on the CPU."""
        found = self.layers((images.to(self.device) - 128) / 128)
        return found.flatten(1).double().cpu()


def features(network: nn.Module, pictures: Pictures, batch_size: int) -> Tensor:
    """Return the network's features of each picture [n, D], float64."""
    found = []
    with tqdm(total=len(pictures), unit="img", disable=None) as bar:
        for start in range(0, len(pictures), batch_size):
            names = pictures.names[start : start + batch_size]
            images = np.stack([resized(pictures.open(name)) for name in names])
            found.append(network(torch.from_numpy(images)))
            bar.update(len(names))
    return torch.cat(found)


def resized(image: Image.Image) -> NDArray[np.float32]:
    """Return an RGB image as clean-fid resizes it: [3, 299, 299] in [0, 255], not rounded."""
    return bicubic(image, (SIDE, SIDE)).clip(0, 255)


def fid(real: Tensor, fake: Tensor) -> Figure:
    """Return the Fréchet distance (arXiv 1706.08500) of two sets of features [n, D], [m, D]."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric: Any = FrechetInceptionDistance(feature=_Given(real.shape[1]))
    metric.update(real, real=True)
    metric.update(fake, real=False)
    note = "no interval: a resample repeats images, which alone raises FID"
    if (fewest := min(len(real), len(fake))) < real.shape[1]:
        note += f"; {fewest} images are fewer than its {real.shape[1]} features: too high, see kid"
    return Figure("fid", "distance", float(metric.compute()), len(fake), note=note)


def kid(real: Tensor, fake: Tensor, seed: int) -> Figure:
    """Return the kernel distance (arXiv 1801.01401) of two sets of features [n, D], [m, D]."""
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(SUBSET, len(real), len(fake))
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", message=".*will save all extracted features")
        metric: Any = KernelInceptionDistance(
            feature=_Given(real.shape[1]), subsets=SUBSETS, subset_size=size
        )
        metric.update(real, real=True)
        metric.update(fake, real=False)
        torch.manual_seed(seed)
        value, deviation = metric.compute()
    if size == len(real) == len(fake):
        note = "no interval: there are too few images for subsets that differ"
    else:
        spread = f"{float(deviation):.2g} over {SUBSETS} subsets of {size}"
        note = f"no interval: standard deviation {spread}"
    return Figure("kid", "distance", float(value), len(fake), note=note)


class _Given(nn.Module):
    """Passes on features as torchmetrics' feature network."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, found: Tensor) -> Tensor:
        return found


def _need_torchmetrics() -> None:
    try:
        import torchmetrics.image  # noqa: F401
    except ImportError as error:
        # torchmetrics imports torch-fidelity where it is installed, and that needs torchvision.
        fix = (
            "install torchvision, or remove torch-fidelity"
            if error.name == "torchvision"
            else install_line("evaluate")
        )
        raise MissingError(f"{error}: {fix}") from None
