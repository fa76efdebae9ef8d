"""What looks at images, with a detector of its own in each process that `annotate` starts."""

from __future__ import annotations

import io
import math
import signal
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

from PIL import Image

from fairhuman.common.error_text import first_line
from fairhuman.common.errors import DataError
from fairhuman.curation.annotation.detector import Detector, DetectorChoice, Region
from fairhuman.curation.annotation.marks import picture_digest
from fairhuman.curation.geometry import clip, draw_outlines
from fairhuman.curation.written_masks import write_mask
from fairhuman.data.folder import open_photograph


@dataclass
class _State:
    root: Path
    choice: DetectorChoice
    detector: Detector


_state: _State | None = None


def start(root: Path, choice: DetectorChoice) -> None:
    """Load the detector of this process."""
    global _state
    _state = _State(root, choice, choice.make())


def start_worker(root: Path, choice: DetectorChoice) -> None:
    """Do so in a process of its own."""
    # Ctrl-C reaches the whole group; the parent ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    start(root, choice)


def look(name: str, regions: tuple[str, ...]) -> dict[str, Any]:
    """Return what an image holds, in the journal's form.

    "picture" is the digest of its file, taken before it is opened: if it is replaced in between,
    the next run looks again. Then "found" by region, or "problem".
    """
    assert _state is not None
    path = _state.root / name
    picture = picture_digest(path)
    try:
        image = open_photograph(path)
    except DataError as error:
        return {"picture": picture, "problem": str(error)}
    try:
        detection = _state.detector.detect(image)
        regions_found = {region: _sorted(detection[region], image.size) for region in regions}
        masks = {region: _mask(things, image.size) for region, things in regions_found.items()}
    except MemoryError:
        return {"picture": picture, "problem": f"{path}: there is not enough memory for it"}
    # A detector is anybody's code and raises what it likes; one image must not stop the others.
    except Exception as error:
        # A native graph that failed once fails for good.
        _state.detector = _state.choice.make()
        problem = f"{path}: the detector failed: {first_line(error)}"
        return {"picture": picture, "problem": problem}
    found = {}
    for region, things in regions_found.items():
        found[region] = {
            "boxes": [[round(value, 2) for value in thing.box] for thing in things],
            "scores": [round(float(thing.score), 3) for thing in things],
            "mask": _written(name, region, masks[region]),
            "refined": sum(thing.mask is not None for thing in things),
        }
    return {"picture": picture, "found": found}


def _sorted(things: list[Region], size: tuple[int, int]) -> list[Region]:
    """Return regions cut to the image, the surest first.

    Raises:
        ValueError: one is no region.
    """
    kept = []
    for thing in things:
        x, y, width, height = map(float, thing.box)
        if not all(map(math.isfinite, (x, y, width, height, float(thing.score)))):
            raise ValueError(f"it gave the box {thing.box} with the score {thing.score}")
        box = clip((x, y, width, height), size)
        if box and min(round(side, 2) for side in box[2:]) > 0:
            kept.append(replace(thing, box=box))
    return sorted(kept, key=lambda thing: (-thing.score, thing.box))


def _mask(things: list[Region], size: tuple[int, int]) -> bytes | None:
    """Return a mask as PNG where every thing has an outline, or one has more than its box."""
    refined = any(thing.mask for thing in things)
    if not things or not (refined or all(thing.outline for thing in things)):
        return None
    mask = draw_outlines([thing.outline for thing in things if not thing.mask], size).copy()
    for thing in things:
        if thing.mask:
            rows, columns = thing.mask.pixels.shape
            left, top = thing.mask.left, thing.mask.top
            mask[top : top + rows, left : left + columns][thing.mask.pixels] = 255
        elif not thing.outline:
            x, y, width, height = thing.box
            mask[int(y) : ceil(y + height), int(x) : ceil(x + width)] = 255
    png = io.BytesIO()
    Image.fromarray(mask).save(png, "png")
    return png.getvalue()


def _written(name: str, region: str, content: bytes | None) -> str | None:
    """Write a mask; return its file name."""
    assert _state is not None
    if content is None:
        return None
    return write_mask(_state.root, _state.detector.name, name, region, content)
