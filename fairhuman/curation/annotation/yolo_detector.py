"""Faces and hands by weights for ultralytics' YOLO (https://docs.ultralytics.com)."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from PIL import Image

from fairhuman.common.digests import digest
from fairhuman.common.errors import UserError
from fairhuman.curation.annotation.detector import Detection, Region
from fairhuman.curation.geometry import clip

# Formats that hold numbers and a graph, and cannot run code of their author's when loaded.
SAFE_SUFFIXES = (".onnx",)


class YoloDetector:
    """The detector `yolo`: one set of weights per region; a region without weights is not sought.

    Args:
        face_weights: a file of ultralytics, trained to find faces.
        hand_weights: the same for hands.
        trust_weights: load pickled weights (.pt): whoever made the file can run code here.
        threshold: least confidence of a face or a hand.
    """

    name = "yolo"

    def __init__(
        self,
        face_weights: Path | None = None,
        hand_weights: Path | None = None,
        trust_weights: bool = False,
        threshold: float = 0.5,
    ) -> None:
        paths = {
            region: path
            for region, path in (("face", face_weights), ("hand", hand_weights))
            if path is not None
        }
        if not paths:
            raise UserError("--detector yolo: give --face-weights, --hand-weights or both")
        for region, path in paths.items():
            flag = f"--{region}-weights {path}"
            if not path.is_file():
                raise UserError(f"{flag}: there is no such file")
            if path.suffix.lower() not in SAFE_SUFFIXES and not trust_weights:
                raise UserError(
                    f"{flag}: only {', '.join(SAFE_SUFFIXES)} is loaded without trust: other "
                    "weights can run code of whoever made them; if you trust where this file is "
                    "from, add --trust-weights"
                )
        try:
            ultralytics = import_module("ultralytics")
        except ImportError as error:
            raise UserError(
                f"--detector yolo: {error}; install it: pip install ultralytics"
            ) from None
        self.threshold = threshold
        self.regions = tuple(paths)
        self.version = "+".join(
            [ultralytics.__version__]
            + [f"{region}:{digest(path)[:12]}" for region, path in paths.items()]
        )
        self._models: dict[str, Any] = {
            region: ultralytics.YOLO(str(path), task="detect") for region, path in paths.items()
        }

    def detect(self, image: Image.Image) -> Detection:
        """Return the regions that there are weights for."""
        found: Detection = {}
        for region, model in self._models.items():
            boxes = model.predict(image, conf=self.threshold, verbose=False)[0].boxes
            found[region] = []
            for corners, score in zip(boxes.xyxy.tolist(), boxes.conf.tolist(), strict=True):
                left, top, right, bottom = corners
                box = clip((left, top, right - left, bottom - top), image.size)
                if box:
                    found[region].append(Region(box, float(score)))
        return found
