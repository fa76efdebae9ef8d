"""Masks that are made here, each in a file of its own below the data set's folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fairhuman.common.files import replacing
from fairhuman.data.folder import MASKS


def write_mask(root: Path, maker: str, name: str, region: str, content: bytes) -> str:
    """Write a mask of an image and return its file name, relative to the data set's folder.

    Named by its content, it never replaces one that metadata.jsonl still names.

    Args:
        root: the data set's folder.
        maker: of the mask, such as a detector's name: a folder in `masks`.
        name: the image's file name.
        region: what the mask shows.
        content: a PNG.

    Raises:
        OutputError: it cannot be written.
    """
    mark = hashlib.sha256(content).hexdigest()[:8]
    relative = f"{MASKS}/{maker}/{_short(name)}.{region}.{mark}.png"
    path = root / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, shared=True, sync=False) as aside:
        aside.write_bytes(content)
    return relative


def _short(name: str) -> str:
    """Return a file name that leaves room for an ending; the longest has 255 bytes."""
    folder, slash, last = name.rpartition("/")
    encoded = last.encode()
    if len(encoded) > 200:
        mark = hashlib.sha256(encoded).hexdigest()[:8]
        last = f"{encoded[:190].decode(errors='ignore')}.{mark}"
    return f"{folder}{slash}{last}"
