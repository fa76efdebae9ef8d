"""Which steps of a run are exported to OUT/exports, and which of them is the best."""

from __future__ import annotations

from pathlib import Path

from fairhuman.checkpointing.manifest import Progress
from fairhuman.common.files import remove, replacing
from fairhuman.common.run_folder import BEST, EXPORTS, export_folder


def export_due(every: int, progress: Progress) -> bool:
    """Return whether a step is exported: each `every`-th, and each new best; 0: none."""
    best = progress.best is not None and progress.best.step == progress.step
    return every > 0 and (progress.step % every == 0 or best)


def mark_best_export(output: Path, every: int, progress: Progress) -> None:
    """Have OUT/exports/best lead to the step that was exported last, if it is the best.

    The best before is dropped if nothing else asked for it.
    """
    best, link = progress.best, output / EXPORTS / BEST
    if best is None or best.step != progress.step:
        return
    now = export_folder(output, best.step)
    before = link.parent / link.readlink().name if link.is_symlink() else None
    with replacing(link, sync=False) as aside:
        aside.symlink_to(now.name)
    if before and before != now and before.name.startswith("step-"):
        step = int(before.name.removeprefix("step-"))
        if step % every:
            remove(before)
