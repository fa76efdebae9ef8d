"""Pages that show runs: OUT/report.html of one, and several compared.

`history` reads a run; `parts` makes pages, sections, tables and tiles; `chart`, `scatter` and
`bars` draw; `gallery` shows pictures; `figures`, `run_page` and `compare` choose what is shown.
"""

from fairhuman.report.command import write_comparison, write_report

__all__ = ["write_comparison", "write_report"]
