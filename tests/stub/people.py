"""Drawn people at SDXL's size, each its own control image."""

from __future__ import annotations

import json
from pathlib import Path


def draw(root: Path, count: int = 16, size: int = 1024) -> None:
    """Draw them into a folder, unless they are there."""
    from fairhuman.demo.drawn import draw_people

    listed = root / "metadata.jsonl"
    if listed.is_file():
        return
    draw_people(root, count=count, size=size, seed=0)
    lines = [json.loads(line) for line in listed.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        line["conditioning_image"] = line["file_name"]
    listed.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
