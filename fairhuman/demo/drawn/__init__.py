"""Drawn people: a data set with exact faces and hands that needs no download and no annotator."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

from fairhuman.common.errors import UserError
from fairhuman.common.files import write_text
from fairhuman.data.records import METADATA, write_metadata
from fairhuman.demo.drawn.sample import DrawnSample, draw_person
from fairhuman.demo.drawn.window import draw_zoomed

__all__ = ["DrawnSample", "draw_people", "draw_person", "draw_zoomed", "sample_rng"]

VERSION = 1
STAMP = "demo-data.json"
OWN_FILE = re.compile(r"\d{6}(_face|_hand)?\.png")


def sample_rng(seed: int, index: int) -> random.Random:
    """Return the randomness of one sample, which depends on nothing but the seed and its index."""
    return random.Random(f"drawn people {seed} {index}")


def draw_people(
    out: Path,
    count: int = 512,
    size: int = 128,
    seed: int = 0,
    *,
    zoom: float = 1.0,
    hands: float | None = None,
) -> dict[str, int]:
    """Write `count` drawn people and their metadata.jsonl into the folder `out`.

    A folder that already holds exactly these is left as it is. Returns how many images, faces and
    hands there are, and how many images are without each. Raises UserError for a folder that
    holds some other data set, and for a count or a size that cannot be drawn.

    Args:
        out: the folder.
        count: how many images.
        size: their side, in pixels.
        seed: of all choices.
        zoom: how much larger than usual the people are.
        hands: the share of the images that may show hands; None: as it comes, most of them.
    """
    out = Path(out)
    if count < 1:
        raise UserError(f"cannot draw {count} people: the count must be at least 1")
    if size < 64:
        raise UserError(f"cannot draw people at {size} px: the size must be at least 64")
    wanted: dict[str, Any] = {"version": VERSION, "count": count, "size": size, "seed": seed}
    # Left out where they are as they always were, so that folders of before are kept.
    wanted |= {"zoom": zoom} if zoom != 1 else {}
    wanted |= {"hands": hands} if hands is not None else {}
    stamp = _read_stamp(out)
    metadata = out / METADATA
    if stamp == wanted and metadata.is_file():
        with metadata.open(encoding="utf-8") as lines:
            return _count([json.loads(line) for line in lines])
    # The stamp is there before the first image and the metadata only after the last: a folder
    # that was cut short has a stamp but no metadata, so it is drawn again and never refused.
    metadata.unlink(missing_ok=True)
    for name in ("images", "masks"):
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            if OWN_FILE.fullmatch(path.name):
                path.unlink()
    write_text(out / STAMP, json.dumps(wanted) + "\n")
    rows = []
    for i in range(count):
        # Evenly: of the first n images, too, about n times the share.
        shown = hands is None or int((i + 1) * hands) > int(i * hands)
        rows.append(_write_sample(out, i, draw_zoomed(sample_rng(seed, i), size, zoom, shown)))
    write_metadata(out, rows)
    return _count(rows)


def _read_stamp(out: Path) -> dict[str, Any] | None:
    """Return the parameters of the people drawn into `out`; refuse a folder that is not ours."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: name a folder for the drawn people")
    try:
        stamp = json.loads((out / STAMP).read_text(encoding="utf-8"))
        if isinstance(stamp, dict) and "version" in stamp:
            return stamp
    except (FileNotFoundError, ValueError):
        pass
    for name in (METADATA, "images", "masks"):
        if (out / name).exists():
            raise UserError(
                f"{out} holds {name} that was not drawn by this generator: choose another folder"
            )
    return None


def _write_sample(out: Path, index: int, sample: DrawnSample) -> dict[str, Any]:
    row: dict[str, Any] = {
        "file_name": f"images/{index:06d}.png",
        "text": sample.text,
        "faces": [list(box) for box in sample.faces],
        "hands": [list(box) for box in sample.hands],
    }
    sample.image.save(out / row["file_name"])
    for region, boxes, mask in (
        ("face", sample.faces, sample.face_mask),
        ("hand", sample.hands, sample.hand_mask),
    ):
        if boxes:
            row[f"{region}_mask"] = f"masks/{index:06d}_{region}.png"
            mask.save(out / row[f"{region}_mask"])
    return row


def _count(rows: list[dict[str, Any]]) -> dict[str, int]:
    return {
        "images": len(rows),
        "faces": sum(len(row["faces"]) for row in rows),
        "hands": sum(len(row["hands"]) for row in rows),
        "without_face": sum(not row["faces"] for row in rows),
        "without_hands": sum(not row["hands"] for row in rows),
    }
