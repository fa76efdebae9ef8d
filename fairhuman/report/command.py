"""`fairhuman report`: read runs, write a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from fairhuman.common.files import write_text
from fairhuman.common.run_folder import REPORT
from fairhuman.report.compare import comparison
from fairhuman.report.history import read_run
from fairhuman.report.run_page import run_page
from fairhuman.report.unlike import unlike


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Write the page of a run, by default as OUT/report.html; return where it is.

    Raises:
        UserError: the folder holds no run, or one without a step.
        OutputError: the page cannot be written.
    """
    out = out or folder / REPORT
    write_text(out, run_page(read_run(folder)))
    return out


def write_comparison(
    folders: Sequence[Path], out: Path, say: Callable[[str], None] = print
) -> Path:
    """Write the page that compares runs; return where it is. Raises what `write_report` does.

    Args:
        folders: of the runs.
        out: the page.
        say: gets a line for each thing that makes their numbers incomparable.
    """
    runs = [read_run(folder) for folder in folders]
    write_text(out, comparison(runs))
    for line in unlike(runs):
        say(f"warning: {line}")
    return out
