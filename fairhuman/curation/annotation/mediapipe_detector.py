"""Faces and hands by mediapipe's models, which its wheel carries: nothing is downloaded.

The models see 128 to 224 pixels, so a face or a hand of a person who is far away is lost in the
whole picture. It is looked at in windows: faces in squares of several sizes, poses around the
faces, hands around the wrists, faces around the heads. What two looks find is merged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module, metadata
from typing import Any

import numpy as np
from PIL import Image

from fairhuman.common.errors import UserError
from fairhuman.common.extras import install_line
from fairhuman.curation.annotation.detector import REGIONS, Detection, Point, Region
from fairhuman.curation.annotation.held import held_stderr
from fairhuman.curation.geometry import (
    FLESH,
    around,
    clip,
    hull,
    intersection,
    iou,
    merge,
    square,
)
from fairhuman.curation.geometry import windows as squares
from fairhuman.data.regions import Box

# Larger images are looked at in this size: no model sees more of a window than 224 pixels.
LONGEST = 2048
# Sides of the square windows, in the image's shorter side.
FACE_WINDOWS = (1.0, 0.5, 0.25)
POSE_WINDOWS = (1.0, 0.5)
# A person's windows around a face: their sides in faces, and how far the centre lies below.
BODIES, BELOW = (6.5, 9.0), 2.5
# Windows around a wrist, in lengths of the forearm.
WRIST_WINDOWS = (1.2, 1.8)
# Windows around a face that was found, in its sides.
CLOSE_WINDOWS = (2.0, 3.5)
# A hand that only its pose shows: its side in forearms, and what its confidence is multiplied by.
POSED_HAND, POSED_TRUST = 0.55, 0.7
SMALLEST = 8.0
"""Sides in pixels below which nothing is reported."""

_WRISTS = ((15, (17, 19, 21), 13), (16, (18, 20, 22), 14))
"""Pose landmarks: a wrist, its pinky, index and thumb, its elbow."""
_HEAD = range(11)


class MediapipeDetector:
    """The detector `mediapipe`.

    Args:
        threshold: least confidence of a face or a hand.
    """

    name = "mediapipe"
    regions = REGIONS

    def __init__(self, threshold: float = 0.5) -> None:
        with held_stderr():
            try:
                base = import_module("mediapipe.python.solution_base")
                faces = import_module("mediapipe.python.solutions.face_detection")
                poses = import_module("mediapipe.python.solutions.pose")
            except ImportError as error:
                raise UserError(
                    f"--detector mediapipe: {error}; install it: {install_line('annotate')}"
                ) from None
            self.version = metadata.version("mediapipe")
            self.threshold = threshold
            self._near = faces.FaceDetection(0.3, model_selection=0)
            self._far = faces.FaceDetection(0.3, model_selection=1)
            self._pose = poses.Pose(static_image_mode=True, model_complexity=1)
            # solutions.Hands, but for the palms: they alone have a confidence.
            self._hands = base.SolutionBase(
                binary_graph_path="mediapipe/modules/hand_landmark/hand_landmark_tracking_cpu.binarypb",
                side_inputs={"model_complexity": 1, "num_hands": 4, "use_prev_landmarks": False},
                calculator_params={
                    "palmdetectioncpu__TensorsToDetectionsCalculator.min_score_thresh": threshold,
                    "handlandmarkcpu__ThresholdingCalculator.threshold": 0.5,
                },
                outputs=["multi_hand_landmarks", "palm_detections"],
            )
            # Each logs as it starts, in a thread of its own; after the first image it has started.
            blank = np.zeros((64, 64, 3), dtype=np.uint8)
            for model in (self._near, self._far, self._pose):
                model.process(blank)
            self._hands.process({"image": blank})

    def detect(self, image: Image.Image) -> Detection:
        """Return the faces, and the hands with their outlines."""
        scale = min(1.0, LONGEST / max(image.size))
        if scale < 1:
            shape = [max(1, round(side * scale)) for side in image.size]
            image = image.resize((shape[0], shape[1]), Image.Resampling.BOX)
        with held_stderr():
            found = self._detect(np.asarray(image))
        return {
            name: [_scaled(region, 1 / scale) for region in regions]
            for name, regions in found.items()
        }

    def _detect(self, image: np.ndarray) -> Detection:
        height, width = image.shape[:2]
        size, short = (width, height), float(min(width, height))
        faces: list[Region] = []
        for share in FACE_WINDOWS:
            for window in squares(size, share * short):
                faces += self._faces(self._far, image, window)
                if share == FACE_WINDOWS[0]:
                    faces += self._faces(self._near, image, window)
        faces = merge(self._confirmed(image, faces))

        bodies = [window for share in POSE_WINDOWS for window in squares(size, share * short)]
        for face in faces:
            x, y, w, h = face.box
            center = (x + w / 2, y + h / 2 + BELOW * h)
            bodies += [square(center, side * max(w, h)) for side in BODIES]
        heads: list[Region] = []
        posed: list[Region] = []
        hands = [hand for window in squares(size, short) for hand in self._hands_in(image, window)]
        for body in bodies:
            pose = self._pose_in(image, body)
            if pose is None:
                continue
            heads += self._head(image, pose)
            for center, length, seen in _wrists(pose):
                posed.append(Region(square(center, POSED_HAND * length), POSED_TRUST * seen))
                for share in WRIST_WINDOWS:
                    hands += self._hands_in(image, square(center, max(32.0, share * length)))
        found = {"face": merge(faces + heads), "hand": _with_posed(merge(hands), posed)}
        return {name: _kept(regions, size, self.threshold) for name, regions in found.items()}

    def _faces(self, model: Any, image: np.ndarray, window: Box) -> list[Region]:
        crop, left, top = _crop(image, window)
        if crop is None:
            return []
        height, width = crop.shape[:2]
        faces = []
        for detection in model.process(crop).detections or []:
            box = detection.location_data.relative_bounding_box
            place = (
                left + box.xmin * width,
                top + box.ymin * height,
                box.width * width,
                box.height * height,
            )
            if place[2] > 0 and place[3] > 0:
                faces.append(Region(place, float(detection.score[0])))
        return faces

    def _confirmed(self, image: np.ndarray, faces: Sequence[Region]) -> list[Region]:
        """Look at each face again, close by: a face is seen there too, other things are not.

        Its confidence is the least of those looks.
        """
        confirmed = []
        for face in merge(faces):
            x, y, w, h = face.box
            looks = []
            for side in CLOSE_WINDOWS:
                window = square((x + w / 2, y + h / 2), side * max(w, h))
                again = self._faces(self._near, image, window)
                same = [found for found in again if iou(found.box, face.box) > 0.25]
                looks += sorted(same, key=lambda found: -found.score)[:1]
            if len(looks) == len(CLOSE_WINDOWS):
                confirmed.append(Region(looks[0].box, min(look.score for look in looks)))
        return confirmed

    def _pose_in(self, image: np.ndarray, window: Box) -> np.ndarray | None:
        """Return the pose in a window: x, y, visibility of 33 landmarks, in the image's pixels."""
        crop, left, top = _crop(image, window)
        if crop is None:
            return None
        landmarks = self._pose.process(crop).pose_landmarks
        if landmarks is None:
            return None
        height, width = crop.shape[:2]
        return np.array(
            [(left + p.x * width, top + p.y * height, p.visibility) for p in landmarks.landmark]
        )

    def _head(self, image: np.ndarray, pose: np.ndarray) -> list[Region]:
        head = pose[list(_HEAD)]
        if head[:, 2].mean() < 0.5:
            return []
        x, y, w, h = around([(px, py) for px, py, _ in head.tolist()], 0.0)
        window = square((x + w / 2, y + h / 2), max(16.0, 3.0 * max(w, h)))
        return self._confirmed(image, self._faces(self._near, image, window))

    def _hands_in(self, image: np.ndarray, window: Box) -> list[Region]:
        crop, left, top = _crop(image, window)
        if crop is None:
            return []
        height, width = crop.shape[:2]
        result = self._hands.process({"image": crop})
        palms = []
        for palm in result.palm_detections or []:
            box = palm.location_data.relative_bounding_box
            palms.append(((box.xmin, box.ymin, box.width, box.height), float(palm.score[0])))
        hands = []
        for landmarks in result.multi_hand_landmarks or []:
            relative = [(p.x, p.y) for p in landmarks.landmark]
            box = around(relative, 0.0)
            shares = [(intersection(box, palm), score) for palm, score in palms]
            shared, score = max(shares, default=(0.0, 0.0))
            if shared <= 0:
                continue
            points = [(left + x * width, top + y * height) for x, y in relative]
            hands.append(Region(around(points, FLESH), score, tuple(hull(points))))
        return hands


def _wrists(pose: np.ndarray) -> Iterator[tuple[Point, float, float]]:
    """Yield where the hands of a pose are, how long their forearms, and how surely they show."""
    torso = float(np.linalg.norm(pose[11, :2] - pose[24, :2]))
    for wrist, fingers, elbow in _WRISTS:
        if pose[wrist, 2] < 0.3:
            continue
        center = pose[[wrist, *fingers], :2].mean(axis=0)
        # A forearm that points at the camera looks short.
        length = max(float(np.linalg.norm(pose[wrist, :2] - pose[elbow, :2])), 0.4 * torso)
        yield (float(center[0]), float(center[1])), length, float(pose[wrist, 2])


def _with_posed(hands: list[Region], posed: Sequence[Region]) -> list[Region]:
    """Add the hands that poses alone show, such as gloves: where two poses agree on the place."""
    found = list(hands)
    left = sorted(posed, key=lambda region: (-region.score, region.box))
    while left:
        same = [other for other in left if _near(left[0].box, other.box)]
        left = [other for other in left if not _near(left[0].box, other.box)]
        if len(same) < 2 or any(_near(same[0].box, hand.box) for hand in found):
            continue
        x, y, width, height = np.median([region.box for region in same], axis=0).tolist()
        score = float(np.mean([region.score for region in same]))
        found.append(Region((x, y, width, height), score))
    return found


def _near(first: Box, second: Box) -> bool:
    """Return whether the centres are within a side of the smaller box."""
    x = first[0] + first[2] / 2 - second[0] - second[2] / 2
    y = first[1] + first[3] / 2 - second[1] - second[3] / 2
    return bool(np.hypot(x, y) < min(max(first[2:]), max(second[2:])))


def _crop(image: np.ndarray, window: Box) -> tuple[np.ndarray | None, int, int]:
    """Return the part of the image in the window, and its corner."""
    box = clip(window, (image.shape[1], image.shape[0]))
    if box is None or min(box[2:]) < SMALLEST:
        return None, 0, 0
    left, top = int(box[0]), int(box[1])
    right, bottom = round(box[0] + box[2]), round(box[1] + box[3])
    return np.ascontiguousarray(image[top:bottom, left:right]), left, top


def _kept(regions: Sequence[Region], size: tuple[int, int], threshold: float) -> list[Region]:
    kept = []
    for region in regions:
        box = clip(region.box, size)
        if box and min(box[2:]) >= SMALLEST and region.score >= threshold:
            kept.append(Region(box, region.score, region.outline))
    return kept


def _scaled(region: Region, factor: float) -> Region:
    x, y, width, height = (value * factor for value in region.box)
    outline = tuple((px * factor, py * factor) for px, py in region.outline)
    return Region((x, y, width, height), region.score, outline)
