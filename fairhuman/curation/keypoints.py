"""The keypoints of COCO-WholeBody: where its faces and hands are, and how far they reach.

133 for each person (Jin et al. 2020, arXiv 2007.11858), of which 68 are the face's, in the order of
iBUG's 300-W, and 21 each hand's.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

COUNT = 133
FACE, LEFT, RIGHT = slice(23, 91), slice(91, 112), slice(112, 133)
"""Parts of the 133 keypoints."""
REGIONS = {"face": (FACE,), "hand": (LEFT, RIGHT)}

LEAST = {"face": 12, "hand": 5}
"""Fewer sure keypoints than these say where a corner of a face or hand is, not where it is."""

# Of the face's keypoints.
_CHIN, _BROWS = 8, slice(17, 27)

Points = NDArray[np.float64]
"""[N, 3]: x, y, confidence."""


def sure(points: Points, region: str, confidence: float) -> Points | None:
    """Return the keypoints of a face or hand from this confidence on; None: there are too few."""
    kept = points[(points[:, 2] >= confidence) & np.isfinite(points).all(axis=1)]
    return kept if len(kept) >= LEAST[region] else None


def forehead(face: Points, confidence: float) -> Points:
    """Return the keypoints that a face lacks: its brows, moved up to where the hair begins.

    The keypoints end at the brows. From there to the hair it is as far as from the brows to below
    the nose and from there to the chin (the thirds of a face), so half as far as to the chin. Empty
    if the chin or all brows are unsure.

    Args:
        face: all 68.
        confidence: the least.
    """
    used = (face[:, 2] >= confidence) & np.isfinite(face).all(axis=1)
    brows = face[_BROWS][used[_BROWS]]
    if not used[_CHIN] or not len(brows):
        return face[:0]
    up = (brows[:, :2].mean(axis=0) - face[_CHIN, :2]) / 2
    return np.column_stack([brows[:, :2] + up, brows[:, 2]])
