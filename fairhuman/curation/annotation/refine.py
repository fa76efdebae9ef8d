"""Masks of what a detector finds, drawn by a segmenter and taken where they are plausible."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fairhuman.curation.annotation.detector import Cutout, Detection, Detector, Region
from fairhuman.curation.geometry import around, clip, square
from fairhuman.data.regions import Box

WINDOW = 3.0
"""The side of the square that the segmenter sees, in the longer side of the box."""
SMALLEST_WINDOW = 64.0
"""Pixels."""
REACH = 0.2
"""How far a mask may lie outside its box, in the box's longer side."""
LEAST_INSIDE = 0.9
"""The least share of a mask that must be within this reach; the rest is cut off."""
LEAST_IOU = 0.7
"""The least IoU that the segmenter predicts for its mask."""
AREAS = (0.1, 1.2)
"""The least and the largest area of a mask, in that of its box."""


class Segmenter(Protocol):
    """What draws masks; see `Sam`."""

    name: str

    def segment(self, image: Image.Image, box: Box) -> tuple[NDArray[np.bool_], float]:
        """Return the mask [H, W] of what a box shows, and how good it thinks that it is."""
        ...


class RefinedDetector:
    """A detector whose regions get masks; the protocol is `Detector`'s.

    Each region is looked at by itself, in a square around it, so that a small hand fills as much of
    what the segmenter sees as a large one. A region whose mask is not plausible stays as it was.

    Args:
        detector: finds the regions.
        segmenter: draws their masks.
    """

    def __init__(self, detector: Detector, segmenter: Segmenter) -> None:
        self.name = detector.name
        self.version = f"{detector.version}, masks by {segmenter.name}"
        self.regions = detector.regions
        self._detector = detector
        self._segmenter = segmenter

    def detect(self, image: Image.Image) -> Detection:
        """Return what the detector finds, with masks."""
        found = self._detector.detect(image)
        return {
            name: [self._refined(image, region) for region in regions]
            for name, regions in found.items()
        }

    def _refined(self, image: Image.Image, region: Region) -> Region:
        x, y, width, height = region.box
        side = max(SMALLEST_WINDOW, WINDOW * max(width, height))
        window = clip(square((x + width / 2, y + height / 2), side), image.size)
        if window is None:
            return region
        left, top = int(window[0]), int(window[1])
        right, bottom = round(window[0] + window[2]), round(window[1] + window[3])
        box = (x - left, y - top, width, height)
        pixels, predicted = self._segmenter.segment(image.crop((left, top, right, bottom)), box)
        kept = plausible(pixels, predicted, box)
        return region if kept is None else replace(region, mask=Cutout(left, top, kept))


def plausible(pixels: NDArray[np.bool_], predicted: float, box: Box) -> NDArray[np.bool_] | None:
    """Return the part of a mask [H, W] near its box; None: it is not of what is in the box.

    Args:
        pixels: the mask.
        predicted: the IoU that the segmenter predicts.
        box: in the mask's pixels.
    """
    height, width = pixels.shape
    reach = clip(around([box[:2], (box[0] + box[2], box[1] + box[3])], REACH), (width, height))
    total = int(pixels.sum())
    if reach is None or not total or not predicted >= LEAST_IOU:  # also refuses NaN
        return None
    near = np.zeros_like(pixels)
    rows = slice(int(reach[1]), int(np.ceil(reach[1] + reach[3])))
    columns = slice(int(reach[0]), int(np.ceil(reach[0] + reach[2])))
    near[rows, columns] = pixels[rows, columns]
    share = near.sum() / (box[2] * box[3])
    if near.sum() < LEAST_INSIDE * total or not AREAS[0] <= share <= AREAS[1]:
        return None
    return near
