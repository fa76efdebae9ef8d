"""What a detector is: a small class that finds regions in one image."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fairhuman.common.errors import UserError
from fairhuman.data.regions import Box

REGIONS = ("face", "hand")

DETECTORS = {
    "mediapipe": "fairhuman.curation.annotation.mediapipe_detector:MediapipeDetector",
    "yolo": "fairhuman.curation.annotation.yolo_detector:YoloDetector",
    "dwpose": "fairhuman.curation.annotation.dwpose_detector:DwposeDetector",
}

Point = tuple[float, float]


@dataclass(frozen=True)
class Cutout:
    """A part of an image, and what of it is the region."""

    left: int
    top: int
    pixels: NDArray[np.bool_]
    """[H, W]"""


@dataclass(frozen=True)
class Region:
    """A face or a hand that was found, in pixels of the image."""

    box: Box
    score: float
    """Confidence in [0, 1], as the detector gives it: not comparable between detectors."""
    outline: tuple[Point, ...] = ()
    """A polygon around it, where the detector knows one."""
    mask: Cutout | None = field(default=None, compare=False)
    """Its pixels, where something has drawn them: they count instead of the outline."""


Detection = dict[str, list[Region]]
"""Regions by name, one list for each that the detector looks for."""


class Detector(Protocol):
    """Finds regions. `--detector module:Class` takes one of yours; it is given a `threshold`."""

    name: str
    version: str
    """Of the package, or of the weights: another version detects again."""
    regions: tuple[str, ...]
    """What it looks for, of REGIONS."""

    def detect(self, image: Image.Image) -> Detection:
        """Return what an upright RGB image holds."""
        ...


@dataclass(frozen=True)
class DetectorChoice:
    """A detector's name and its constructor's arguments: enough to make it in another process."""

    name: str = "mediapipe"
    settings: dict[str, Any] = field(default_factory=dict)
    sam: str | None = None
    """A SAM that draws the masks of what it finds."""

    def make(self) -> Detector:
        """Load the detector.

        Raises:
            UserError: the name is unknown, or what the detector needs is not there.
        """
        module, _, attribute = DETECTORS.get(self.name, self.name).partition(":")
        if not attribute:
            raise UserError(
                f"--detector {self.name}: must be one of {', '.join(DETECTORS)}, or a class of "
                "yours as module:Class"
            )
        try:
            make = getattr(import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise UserError(f"--detector {self.name}: {error}") from None
        detector: Detector = make(**self.settings)
        if self.sam is None:
            return detector
        # Not above: torch, and a module that imports this one.
        refine = import_module("fairhuman.curation.annotation.refine")
        sam = import_module("fairhuman.curation.annotation.sam")
        refined: Detector = refine.RefinedDetector(detector, sam.Sam(self.sam))
        return refined
