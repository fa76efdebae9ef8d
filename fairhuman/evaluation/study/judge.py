"""A judge of drawn people: how well the faces and fingers in a picture can be found.

A small network, trained on drawn people with their exact masks and finger tips, that looks for them
in the pictures of the study's models: mediapipe finds faces and hands in drawings too, but it gives
every hand five fingers. What the judge finds in drawings that it has not seen is said next to it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from fairhuman.common.files import replacing, write_text
from fairhuman.common.pixels import to_model
from fairhuman.demo.drawn import DrawnSample, draw_person, sample_rng

FACE, HAND, TIP = range(3)
TIP_RADIUS = 1.5
"""Standard deviation of a finger tip in the heat map it is taught, in pixels at 128."""
SEED = 1000
"""Of the people that it is taught and tried on: no other part of a study draws them."""
TAUGHT = 1024


class Found(NamedTuple):
    """What is in a picture, or is found in it."""

    faces: int
    hands: int
    tips: int


class Judge(nn.Module):
    """A U-Net of 0.3 million parameters: pictures [B, 3, H, W] in [-1, 1] to logits [B, 3, H, W].

    Of each pixel: is it a face's, a hand's, a finger tip's.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        widths = [width, 2 * width, 3 * width, 4 * width]
        self.down = nn.ModuleList()
        before = 3
        for after in widths:
            self.down.append(_block(before, after))
            before = after
        self.up = nn.ModuleList(
            _block(low + high, low) for low, high in zip(widths[-2::-1], widths[:0:-1], strict=True)
        )
        self.out = nn.Conv2d(width, 3, 1)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the logits."""
        kept, x = [], pictures
        for index, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if index else x)
            kept.append(x)
        for block, skip in zip(self.up, kept[-2::-1], strict=True):
            x = block(torch.cat([skip, F.interpolate(x, scale_factor=2.0)], dim=1))
        logits: Tensor = self.out(x)
        return logits


def _block(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1),
        nn.GroupNorm(8, after),
        nn.SiLU(),
        nn.Conv2d(after, after, 3, padding=1),
        nn.GroupNorm(8, after),
        nn.SiLU(),
    )


def make_judge(path: Path, size: int, steps: int) -> Judge:
    """Return the judge of drawings of this size: the one in a file, or a new one written there."""
    judge, wanted = Judge(), {"size": size, "steps": steps, "seed": SEED, "taught": TAUGHT}
    stamp = path.with_suffix(".json")
    if path.is_file() and stamp.is_file():
        if json.loads(stamp.read_text(encoding="utf-8")) == wanted:
            judge.load_state_dict(load_file(path))
            return judge.eval()
        stamp.unlink()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        judge = Judge()
    _fit(judge, drawn(SEED, TAUGHT, size), steps)
    with replacing(path) as aside:
        save_file(judge.state_dict(), aside)
    write_text(stamp, json.dumps(wanted))
    return judge.eval()


def drawn(seed: int, count: int, size: int) -> list[DrawnSample]:
    """Return drawn people."""
    return [draw_person(sample_rng(seed, index), size) for index in range(count)]


def truth(sample: DrawnSample) -> Found:
    """Return what a drawn picture shows."""
    return Found(len(sample.faces), len(sample.hands), sum(len(t) for t in sample.fingertips))


@torch.no_grad()
def look(judge: Judge, pictures: Sequence[Image.Image]) -> list[Found]:
    """Return the faces, hands and finger tips that are found in pictures, each on its own."""
    found = []
    for picture in pictures:
        probability = judge(to_model([picture])).sigmoid()[0]
        least = (probability.shape[-1] / 32) ** 2
        found.append(
            Found(
                _regions(probability[FACE], least),
                _regions(probability[HAND], least),
                _peaks(probability[TIP]),
            )
        )
    return found


def _fit(judge: Judge, samples: Sequence[DrawnSample], steps: int, batch: int = 16) -> None:
    rng = torch.Generator().manual_seed(SEED)
    pictures = to_model([sample.image for sample in samples])
    masks = torch.stack([_targets(sample) for sample in samples])
    optimizer = torch.optim.AdamW(judge.parameters(), 3e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    # Hands and finger tips are few pixels: what is missed of them must not be cheap.
    rare = torch.tensor([2.0, 4.0, 12.0])[:, None, None]
    for _ in tqdm(range(steps), desc="judge", unit="step", dynamic_ncols=True):
        index = torch.randint(len(pictures), (batch,), generator=rng)
        x, y = pictures[index], masks[index]
        if torch.rand((), generator=rng) < 0.5:
            x, y = x.flip(-1), y.flip(-1)
        x = _worn(x, rng)
        loss = F.binary_cross_entropy_with_logits(judge(x), y, pos_weight=rare)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()


def _worn(pictures: Tensor, rng: torch.Generator) -> Tensor:
    """Blur, tint and roughen pictures a little, so that the judge is no judge of clean edges."""
    count = len(pictures)
    soft = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    share = torch.rand(count, 1, 1, 1, generator=rng)
    tint = 0.1 * torch.randn(count, 3, 1, 1, generator=rng)
    rough = 0.1 * torch.rand(count, 1, 1, 1, generator=rng)
    noise = torch.randn(pictures.shape, generator=rng)
    return pictures.lerp(soft, share) + tint + rough * noise


def _targets(sample: DrawnSample) -> Tensor:
    """Return the masks of faces and hands, and the heat map of the finger tips, [3, H, W]."""
    size = sample.image.width
    masks = [np.asarray(m, dtype=np.float32) / 255 for m in (sample.face_mask, sample.hand_mask)]
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float32)
    heat = np.zeros((size, size), np.float32)
    spread = 2 * (TIP_RADIUS * size / 128) ** 2
    for x, y in (tip for tips in sample.fingertips for tip in tips):
        square = (columns + 0.5 - x) ** 2 + (rows + 0.5 - y) ** 2
        np.maximum(heat, np.exp(-square / spread), out=heat)
    return torch.from_numpy(np.stack([*masks, heat]))


def _regions(probability: Tensor, least: float) -> int:
    """Return how many connected regions above 0.5 have at least so many pixels."""
    above = probability > 0.5
    # Each pixel takes the largest label around it until none changes.
    labels = torch.arange(1, above.numel() + 1, dtype=torch.float32).view(above.shape) * above
    while True:
        spread = F.max_pool2d(labels[None, None], 3, stride=1, padding=1)[0, 0] * above
        if torch.equal(spread, labels):
            break
        labels = spread
    _, areas = labels[above].unique(return_counts=True)
    return int((areas >= least).sum())


def _peaks(probability: Tensor, least: float = 0.4) -> int:
    """Return how many pixels are the highest within two pixels around, and above `least`."""
    highest = F.max_pool2d(probability[None, None], 5, stride=1, padding=2)[0, 0]
    return int(((probability == highest) & (probability > least)).sum())
