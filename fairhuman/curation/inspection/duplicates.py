"""Images that are there twice: the same file, or the same picture saved or rescaled."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_SIDE = 16
_BANDS = 16
# Of 256 bits. Below _BANDS, so that two such fingerprints share at least one band whole.
DISTANCE = 10


def fingerprint(image: Image.Image) -> NDArray[np.uint8] | None:
    """Return a difference hash of 256 bits, or None for a picture too even to have one."""
    small = image.convert("L").resize((_SIDE + 1, _SIDE), Image.Resampling.BOX)
    values = np.asarray(small, dtype=np.int16)
    steps = np.diff(values, axis=1)
    if float(np.abs(steps).mean()) < 1.0:
        return None
    return np.packbits(steps > 0)


def same(
    prints: Mapping[str, NDArray[np.uint8] | None], digests: Mapping[str, str]
) -> dict[str, str]:
    """Return which image each later one repeats.

    Args:
        prints: fingerprints by file name, in order.
        digests: of the files' bytes, by file name.
    """
    first: dict[str, str] = {}
    repeated: dict[str, str] = {}
    for name, digest in digests.items():
        if digest in first:
            repeated[name] = first[digest]
        else:
            first[digest] = name
    buckets: dict[tuple[int, bytes], list[str]] = defaultdict(list)
    for name, bits in prints.items():
        if bits is None or name in repeated:
            continue
        bands = [(i, part.tobytes()) for i, part in enumerate(np.split(bits, _BANDS))]
        others = dict.fromkeys(other for band in bands for other in buckets[band])
        close = next(
            (other for other in others if _distance(bits, prints[other]) <= DISTANCE), None
        )
        if close is not None:
            repeated[name] = close
            continue
        for band in bands:
            buckets[band].append(name)
    return repeated


def _distance(first: NDArray[np.uint8], second: NDArray[np.uint8] | None) -> int:
    assert second is not None
    return int(np.unpackbits(first ^ second).sum())
