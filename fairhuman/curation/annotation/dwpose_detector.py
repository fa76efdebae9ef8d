"""Faces and hands by whole-body poses: a YOLOX finds people, RTMW or DWPose their keypoints.

Both models are ONNX files that the user names; rtmlib (https://github.com/Tau-J/rtmlib) runs them
with onnxruntime. It is given files alone: a name that is no file it would download.
"""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fairhuman.common.digests import digest
from fairhuman.common.errors import UserError
from fairhuman.common.extras import install_line
from fairhuman.curation.annotation.detector import REGIONS, Detection, Region
from fairhuman.curation.annotation.onnx_model import OnnxModel
from fairhuman.curation.geometry import FLESH, around, clip, hull, merge
from fairhuman.curation.keypoints import REGIONS as PARTS
from fairhuman.curation.keypoints import Points, forehead, sure

PERSON = 0.3
"""The least confidence of a person: who is none has no sure keypoints."""
PEOPLE_SIDE = 640
"""Pixels: YOLOX's input, where its file leaves the size open."""
_COCO_PERSON = 0
# Of one part, found once for each of two overlapping boxes of a person.
_SAME, _INSIDE = 0.5, 0.9
_ERRORS_ONLY = 3


class DwposeDetector:
    """The detector `dwpose`.

    Args:
        person_weights: YOLOX in ONNX, such as DWPose's `yolox_l.onnx`: COCO's classes as YOLOX
            exports them, or people alone as MMDeploy does.
        pose_weights: a model of COCO-WholeBody's 133 keypoints in ONNX, with SimCC's two outputs,
            such as DWPose's `dw-ll_ucoco_384.onnx` and RTMW's.
        threshold: least confidence of a keypoint.

    Raises:
        UserError: a file or a package is missing, or a file is no such model.
    """

    name = "dwpose"
    regions = REGIONS

    def __init__(
        self,
        person_weights: Path | None = None,
        pose_weights: Path | None = None,
        threshold: float = 0.5,
    ) -> None:
        if person_weights is None or pose_weights is None:
            raise UserError("--detector dwpose: give --person-weights and --pose-weights")
        for flag, path in (("--person-weights", person_weights), ("--pose-weights", pose_weights)):
            if not path.is_file():
                raise UserError(f"{flag} {path}: there is no such file")
        try:
            runtime: Any = import_module("onnxruntime")
            rtmlib: Any = import_module("rtmlib")
        except ImportError as error:
            raise UserError(
                f"--detector dwpose: {error}; install it: {install_line('dwpose')}"
            ) from None
        runtime.set_default_logger_severity(_ERRORS_ONLY)
        device = "cuda" if "CUDAExecutionProvider" in runtime.get_available_providers() else "cpu"
        people = OnnxModel(runtime, f"--person-weights {person_weights}", person_weights, device)
        poses = OnnxModel(runtime, f"--pose-weights {pose_weights}", pose_weights, device)
        side = people.size or (PEOPLE_SIDE, PEOPLE_SIDE)
        has_nms = people.check_people(side)
        shape = poses.check_pose()
        self.threshold = threshold
        self.version = (
            f"{metadata.version('rtmlib')}+person:{digest(person_weights)[:12]}"
            f"+pose:{digest(pose_weights)[:12]}"
        )
        with redirect_stdout(io.StringIO()):  # it prints what it loads
            self._people = rtmlib.YOLOX(
                str(person_weights),
                model_input_size=side,
                det_mode="human" if has_nms else "multiclass",
                score_thr=PERSON,
                backend="onnxruntime",
                device=device,
            )
            self._poses = rtmlib.RTMPose(
                str(pose_weights),
                model_input_size=(shape[1], shape[0]),
                backend="onnxruntime",
                device=device,
            )

    def detect(self, image: Image.Image) -> Detection:
        """Return the faces and hands of the people; nobody found is nothing found."""
        pixels = np.asarray(image)
        found: Detection = {region: [] for region in REGIONS}
        people = self._boxes(pixels)
        if not len(people):  # rtmlib would take the whole image for a person
            return found
        # RTMW and DWPose are trained on RGB, with RGB's mean; rtmlib passes on what it is given.
        places, scores = self._poses(pixels, bboxes=people)
        for person in np.concatenate([places, scores[..., None]], axis=2).astype(np.float64):
            for region, parts in PARTS.items():
                for part in parts:
                    found[region] += self._regions(person[part], region, image.size)
        return {name: merge(regions, _SAME, _INSIDE) for name, regions in found.items()}

    def _boxes(self, pixels: NDArray[np.uint8]) -> list[list[float]]:
        """Return the people's boxes: left, top, right, bottom."""
        height, width = pixels.shape[:2]
        rows, columns = self._people.model_input_size
        scale = min(rows / height, columns / width)
        if min(height, width) * scale < 1:  # nothing is left of it at the model's size
            return []
        bgr = np.ascontiguousarray(pixels[..., ::-1])  # as OpenCV reads, and YOLOX was trained
        if self._people.det_mode == "multiclass":
            boxes, classes = self._people(bgr)
            boxes = boxes[classes == _COCO_PERSON] if len(boxes) else boxes
        else:
            boxes = self._people(bgr)
        people: list[list[float]] = []
        for left, top, right, bottom in np.asarray(boxes, dtype=np.float64).tolist():
            if clip((left, top, right - left, bottom - top), (width, height)):
                people.append([left, top, right, bottom])
        return people

    def _regions(self, points: Points, region: str, size: tuple[int, int]) -> list[Region]:
        used = sure(points, region, self.threshold)
        if used is None:
            return []
        outer = used
        if region == "face":
            outer = np.concatenate([used, forehead(points, self.threshold)])
        outline = hull([(x, y) for x, y in outer[:, :2].tolist()])
        box = clip(around(outline, FLESH), size)
        # SimCC's confidences are no probabilities, and may exceed 1.
        score = min(1.0, float(used[:, 2].mean()))
        return [Region(box, score, tuple(outline))] if box else []
