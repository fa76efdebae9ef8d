"""`fairhuman report`: read runs, write a page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fairhuman.errors import OutputError
from fairhuman.report.compare import comparison
from fairhuman.report.history import read_run
from fairhuman.report.run_page import run_page

REPORT = "report.html"


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Write the page of a run, by default as OUT/report.html; return where it is.

    Raises:
        UserError: the folder holds no run, or one without a step.
        OutputError: the page cannot be written.
    """
    return _write(out or folder / REPORT, run_page(read_run(folder)))


def write_comparison(folders: Sequence[Path], out: Path) -> Path:
    """Write the page that compares runs; return where it is. Raises what `write_report` does."""
    return _write(out, comparison([read_run(folder) for folder in folders]))


def _write(out: Path, text: str) -> Path:
    aside = out.with_name(f"{out.name}.partial")
    try:
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, out)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written: {error.strerror}") from None
    return out
