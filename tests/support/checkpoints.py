"""Checkpoints by their manifest and one file."""

from __future__ import annotations

import json
from pathlib import Path


def make_checkpoint(output: Path, step: int, ranks: int = 2) -> Path:
    folder = output / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"1234")
    manifest = {
        "ranks": ranks,
        "progress": {"step": step, "samples_seen": step * 8, "skipped": 1},
        "files": {"weights": 4},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder
