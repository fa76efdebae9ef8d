"""What can be wrong with a sample, and the measures that tell."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairhuman.common.images import open_mask
from fairhuman.common.masks import extent
from fairhuman.data.regions import Annotation, Box
from fairhuman.data.transform import Placement, grey

KINDS = {
    "unusable": "cannot be used for training",
    "inverted": "mask is likely inverted",
    "disagree": "mask and boxes are in different places",
    "empty": "mask has no region in it",
    "duplicate": "image is there twice",
    "outside": "region is outside the crop",
    "tiny": "region is smaller than 2 x 2 latent cells",
    "unannotated": "nobody looked for a region",
    "overlap": "a region is annotated twice",
    "enlarged": "image is enlarged more than 8 times",
    "caption": "caption is missing or holds control characters",
    "long": "caption is longer than what is read of it",
    "cut": "region is cut by the crop",
    "none": "no face and no hand",
}
"""Kinds of findings, worst first."""

NOTES = frozenset(("cut", "none"))
"""What is no mistake: a sheet shows it, --strict lets it pass."""

# Two boxes of a region with more intersection over union than this are one thing.
TWICE = 0.7
# A mask with a larger share of white is taken for inverted, also along the image's border alone.
WHITE, WHITE_BORDER = 0.5, 0.6
TINY_CELLS = 2.0
# An image that is enlarged further is but blocks and blur.
ENLARGED = 8.0


@dataclass(frozen=True)
class Finding:
    """Something to know about a sample."""

    kind: str
    text: str


@dataclass(frozen=True)
class Size:
    """How large a region is for the trainer, without data.mask_margin."""

    region: str
    width: float
    """In pixels at the training resolution, also what the crop cuts off."""
    height: float

    def side(self) -> float:
        """Return the side of the square of the same area."""
        return float(np.sqrt(self.width * self.height))


@dataclass
class Measured:
    """What was found of one sample."""

    sizes: list[Size] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def measure(
    regions: dict[str, Annotation], placement: Placement, cell: int, margin: float
) -> Measured:
    """Return the sizes of a sample's regions and what is wrong with them.

    Args:
        regions: the sample's annotations, checked.
        placement: how the image lies in the training square.
        cell: pixels per side of a latent cell.
        margin: what boxes are widened by; a mask may reach so far out of its boxes.
    """
    found = Measured()
    for region, annotation in regions.items():
        boxes = annotation.boxes
        if annotation.mask is not None:
            values = grey(open_mask(annotation.mask))
            found.findings += _mask_findings(region, values, boxes, placement, margin)
            if not boxes:
                around = extent(values > 0.5)
                boxes = (around,) if around else ()
        for box in placement.boxes(boxes):
            found.sizes.append(Size(region, box[2], box[3]))
            found.findings += _box_findings(region, box, placement.size, cell)
        found.findings += _twice(region, boxes)
    if not found.sizes and not found.findings:
        found.findings.append(Finding("none", "no face and no hand is annotated"))
    found.findings += _enlarged(placement)
    return found


def caption_findings(caption: str) -> list[Finding]:
    """Return what is wrong with a caption."""
    if not caption.strip():
        return [Finding("caption", "the caption is missing")]
    found = {char for char in caption if unicodedata.category(char) == "Cc"} - set("\t\n\r")
    if found:
        codes = ", ".join(f"U+{ord(char):04X}" for char in sorted(found)[:5])
        return [Finding("caption", f"the caption holds control characters: {codes}")]
    return []


def long_caption(tokens: int, read: int) -> list[Finding]:
    """Return a finding where a caption has more tokens than are read."""
    if tokens <= read:
        return []
    return [
        Finding("long", f"the caption has {tokens} tokens, of which {read} are read: shorten it")
    ]


def _enlarged(placement: Placement) -> list[Finding]:
    factor = max(new / old for new, old in zip(placement.resized, placement.stored, strict=True))
    if factor <= ENLARGED:
        return []
    width, height = placement.stored
    return [Finding("enlarged", f"{width} x {height} px are enlarged {factor:.0f} times")]


def unannotated(row: dict[str, Any], regions: Sequence[str]) -> list[Finding]:
    """Return a finding for every region that a row of metadata.jsonl has no key of."""
    return [
        Finding("unannotated", f"neither '{region}s' nor '{region}_mask' is there")
        for region in regions
        if row.get(f"{region}s") is None and row.get(f"{region}_mask") is None
    ]


def _box_findings(region: str, box: Box, size: tuple[int, int], cell: int) -> list[Finding]:
    x, y, width, height = box
    seen_width = min(x + width, size[0]) - max(x, 0.0)
    seen_height = min(y + height, size[1]) - max(y, 0.0)
    cells = f"{width / cell:.1f} x {height / cell:.1f} latent cells"
    if seen_width <= 0 or seen_height <= 0:
        return [Finding("outside", f"a {region} is outside the crop")]
    if min(width, height) < TINY_CELLS * cell:
        return [Finding("tiny", f"a {region} is {width:.0f} x {height:.0f} px, {cells}")]
    share = seen_width * seen_height / (width * height)
    if share < 0.9:
        return [Finding("cut", f"a {region} is cut by the crop: {share:.0%} of it is inside")]
    return []


def _twice(region: str, boxes: Sequence[Box]) -> list[Finding]:
    x, y, width, height = np.asarray(boxes, dtype=np.float64).reshape(-1, 4).T
    right, bottom = x + width, y + height
    twice = 0
    for i in range(len(x) - 1):
        rest = slice(i + 1, None)
        across = np.minimum(right[i], right[rest]) - np.maximum(x[i], x[rest])
        down = np.minimum(bottom[i], bottom[rest]) - np.maximum(y[i], y[rest])
        common = across.clip(0) * down.clip(0)
        united = width[i] * height[i] + width[rest] * height[rest] - common
        twice += int((common > TWICE * united).sum())
    if not twice:
        return []
    pairs = "" if twice == 1 else f" ({twice} pairs)"
    return [Finding("overlap", f"two {region} boxes are nearly the same{pairs}")]


def _mask_findings(
    region: str,
    mask: NDArray[np.float32],
    boxes: Sequence[Box],
    placement: Placement,
    margin: float,
) -> list[Finding]:
    share = float(mask.mean())
    if share == 0:
        if boxes:
            return [Finding("empty", f"the {region} mask is black, though there are boxes")]
        return []
    border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    if share > WHITE or (share > 0.1 and float(border.mean()) > WHITE_BORDER):
        return [
            Finding(
                "inverted",
                f"the {region} mask is {share:.0%} white and its border {border.mean():.0%}: "
                "white must be the region",
            )
        ]
    if boxes:
        # The margin is in pixels of the training square.
        reach = margin * placement.stored[0] / placement.resized[0]
        inside = np.zeros(mask.shape, dtype=bool)
        for x, y, width, height in boxes:
            rows = slice(max(0, int(y - reach)), int(np.ceil(y + height + reach)))
            inside[rows, max(0, int(x - reach)) : int(np.ceil(x + width + reach))] = True
        within = float(mask[inside].sum() / mask.sum())
        if within < 0.5:
            return [
                Finding(
                    "disagree",
                    f"only {within:.0%} of the {region} mask is in or near the {region} boxes",
                )
            ]
    return []
