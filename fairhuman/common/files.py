"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from fairhuman.errors import OutputError


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, in place of what was there.

    Raises:
        OutputError: it cannot be written; what was there still is.
    """
    aside = path.with_name(f"{path.name}.partial")
    try:
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from None
