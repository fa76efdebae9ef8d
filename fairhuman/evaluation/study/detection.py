"""What can be seen in a study's pictures: by mediapipe where it is, by the judge in drawings."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from fairhuman.evaluation.confidence import Confidence, load
from fairhuman.evaluation.missing import MissingError
from fairhuman.evaluation.study.drawn_case import DrawnCase, Share


@dataclass(frozen=True)
class Look:
    """What was seen in the pictures of one run. None: nobody looked."""

    face: float | None
    """mediapipe's confidence of faces as the paper measures it, mean over the pictures."""
    hand: float | None
    share: Share | None


class Onlooker:
    """Looks at pictures."""

    def __init__(self, drawn_case: DrawnCase | None, say: Callable[[str], None]) -> None:
        self._drawn_case = drawn_case
        self._judge = drawn_case.judge() if drawn_case else None
        self._confidence: Callable[[Image.Image], Confidence] | None = None
        try:
            self._confidence = load()
        except MissingError as error:
            say(f"confidence of faces and hands is left out: {error}")

    def look(self, pictures: Sequence[Image.Image]) -> Look:
        """Look at the pictures of the study's prompts, in their order."""
        face = hand = share = None
        if self._confidence:
            found = [self._confidence(picture) for picture in pictures]
            face = statistics.fmean(one.face for one in found)
            hand = statistics.fmean(one.hand for one in found)
        if self._drawn_case and self._judge:
            share = self._drawn_case.score(self._judge, pictures)
        return Look(face, hand, share)

    def references(self, start: Sequence[Image.Image]) -> dict[str, Look]:
        """Look at what the arms' pictures are to be held against."""
        seen = {"the start": self.look(start)}
        if self._drawn_case:
            seen |= {name: self.look(shown) for name, shown in self._drawn_case.originals().items()}
        return seen
