"""What looks at images, with a detector of its own in each process that `annotate` starts."""

from __future__ import annotations

import hashlib
import io
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from fairhuman.annotation.detector import Detector, DetectorChoice, Region
from fairhuman.annotation.geometry import draw_outlines
from fairhuman.data.folder import MASKS, open_photograph
from fairhuman.errors import DataError


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
    """Return what an image holds, in the journal's form: "found" by region, or "problem"."""
    assert _state is not None
    try:
        image = open_photograph(_state.root / name)
        detection = _state.detector.detect(image)
    except DataError as error:
        return {"problem": str(error)}
    except RuntimeError as error:
        # A native graph that failed once fails for good.
        _state.detector = _state.choice.make()
        return {"problem": f"{_state.root / name}: the detector failed: {error}"}
    except MemoryError:
        return {"problem": f"{_state.root / name}: there is not enough memory for it"}
    found = {}
    for region in regions:
        things = sorted(detection[region], key=lambda thing: (-thing.score, thing.box))
        found[region] = {
            "boxes": [[round(value, 2) for value in thing.box] for thing in things],
            "scores": [round(thing.score, 3) for thing in things],
            "mask": _mask(name, region, things, image.size),
        }
    return {"found": found}


def _mask(name: str, region: str, things: list[Region], size: tuple[int, int]) -> str | None:
    """Write the mask where every thing has an outline; return its file name."""
    assert _state is not None
    if not things or not all(thing.outline for thing in things):
        return None
    png = io.BytesIO()
    outlines = [thing.outline for thing in things]
    Image.fromarray(draw_outlines(outlines, size)).save(png, "png")
    content = png.getvalue()
    # Named by its content, it never replaces one that metadata.jsonl still names.
    mark = hashlib.sha256(content).hexdigest()[:8]
    relative = f"{MASKS}/{_state.detector.name}/{name}.{region}.{mark}.png"
    path = _state.root / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_bytes(content)
    os.replace(aside, path)
    return relative
