"""Confidence of mediapipe's hands and faces, as the FairHuman paper measures pictures.

The models are those that the paper names, in mediapipe's wheel, with mediapipe's own settings: at
most two hands, the short-range face model, detections of 0.5 and more. A hand's confidence is the
score of its handedness, which is what the paper's script averages; a face's is its detection's.

Unlike in that script, every image is looked at on its own: it passes images through one tracker,
which looks for hands first where they were in the image before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module

import numpy as np
from PIL import Image
from tqdm import tqdm

from fairhuman.common.extras import install_line
from fairhuman.curation.annotation.held import held_stderr
from fairhuman.evaluation.figures import Figure, Measured, mean
from fairhuman.evaluation.missing import MissingError
from fairhuman.evaluation.picture_pairs import Pictures

METRICS = ("hands", "faces")
LEAST = 0.5
HANDS = 2


@dataclass(frozen=True)
class Confidence:
    """What was detected in one image: a score in [0, 1] for each hand and each face."""

    hands: tuple[float, ...]
    faces: tuple[float, ...]

    @property
    def hand(self) -> float:
        """The mean over the image's hands; 0 without any."""
        return _mean(self.hands)

    @property
    def face(self) -> float:
        """The mean over the image's faces; 0 without any."""
        return _mean(self.faces)


def confidence(images: Iterable[Image.Image]) -> list[Confidence]:
    """Return what mediapipe detects in each image, whatever the others are.

    Args:
        images: upright, RGB.

    Raises:
        MissingError: mediapipe is not installed.
    """
    look = load()
    return [look(image) for image in images]


def load() -> Callable[[Image.Image], Confidence]:
    """Load mediapipe's models; return a function of an upright RGB image.

    Raises:
        MissingError: mediapipe is not installed.
    """
    try:
        with held_stderr():
            hands = import_module("mediapipe.python.solutions.hands")
            faces = import_module("mediapipe.python.solutions.face_detection")
    except ImportError as error:
        raise MissingError(f"{error}: {install_line('evaluate')}") from None
    with held_stderr():
        hand_model = hands.Hands(
            static_image_mode=True, max_num_hands=HANDS, min_detection_confidence=LEAST
        )
        face_model = faces.FaceDetection(min_detection_confidence=LEAST, model_selection=0)
        # Each logs as it starts, in a thread of its own; after the first image it has started.
        for model in (hand_model, face_model):
            model.process(np.zeros((64, 64, 3), dtype=np.uint8))

    def look(image: Image.Image) -> Confidence:
        pixels = np.asarray(image.convert("RGB"))
        with held_stderr():
            sides = hand_model.process(pixels).multi_handedness or []
            seen = face_model.process(pixels).detections or []
        return Confidence(
            tuple(float(side.classification[0].score) for side in sides),
            tuple(float(face.score[0]) for face in seen),
        )

    return look


def prepare(wanted: Sequence[str], pictures: Pictures, seed: int) -> Callable[[], Measured]:
    """Load the models; return what measures `hands` and `faces`, whichever are wanted.

    Raises:
        MissingError: mediapipe is not installed.
    """
    look = load()
    settings = {
        "hands": {
            "score": "handedness",
            "most": HANDS,
            "least_confidence": LEAST,
            "tracking": False,
        },
        "faces": {"score": "detection", "model": "short range", "least_confidence": LEAST},
    }

    def measure() -> Measured:
        found = [look(image) for image in tqdm(pictures, unit="img", disable=None)]
        figures: list[Figure] = []
        per_image = {}
        for metric in wanted:
            scores = [one.hands if metric == "hands" else one.faces for one in found]
            figures += summarize(metric, scores, seed)
            per_image[metric] = list(map(_mean, scores))
        return Measured(
            figures, per_image, {metric: settings[metric] for metric in wanted}, ("mediapipe",)
        )

    return measure


def summarize(metric: str, scores: Sequence[Sequence[float]], seed: int) -> list[Figure]:
    """Return the figures of a metric from the scores of each image's detections.

    `confidence` counts an image without a detection as 0, `confidence_detected` leaves it out.
    """
    numbers = list(map(len, scores))
    detected = [min(number, 1) for number in numbers]
    means = list(map(_mean, scores))
    return [
        mean(metric, "confidence", means, seed=seed),
        mean(metric, "confidence_detected", means, detected, seed=seed),
        # The paper's: an image with two counts twice.
        mean(metric, "confidence_per_detection", list(map(sum, scores)), numbers, seed=seed),
        mean(metric, "share_detected", detected, seed=seed),
    ]


def _mean(scores: Sequence[float]) -> float:
    return sum(scores) / max(1, len(scores))
