"""Which checkpoints stay: the newest, and the best."""

from __future__ import annotations

from pathlib import Path

from fairhuman.checkpointing.manifest import Best
from fairhuman.common.files import PARTIAL, remove, replacing, sync_path
from fairhuman.common.run_folder import BEST, CHECKPOINTS, STEPS, checkpoint_folder


def mark_best(output: Path, best: Best | None) -> None:
    """Have OUT/checkpoints/best lead to the best one, or not be there.

    It can be made again from the newest manifest, which is the record: a run that is killed
    between the checkpoint and the link has the old link, to a checkpoint that still is there.
    """
    link = output / CHECKPOINTS / BEST
    if best is None:
        link.unlink(missing_ok=True)
        return
    with replacing(link, sync=False) as aside:  # to sync a link is to sync what it leads to
        aside.symlink_to(checkpoint_folder(output, best.step).name)
    sync_path(link.parent)


def rotate(
    folder: Path,
    keep: int,
    best: Best | None,
    step: int | None = None,
    held: Path | None = None,
) -> None:
    """Drop the oldest checkpoints up to a step, but the best and the one that is `held`.

    Those after it were passed over as damaged, and must not count in place of good ones. They are
    dropped when the run has come that far again.
    """
    kept = checkpoint_folder(folder.parent, best.step) if best else None
    last = checkpoint_folder(folder.parent, step).name if step is not None else "step-99999999"
    for old in sorted(path for path in folder.glob(STEPS) if path.name <= last)[:-keep]:
        if old not in (kept, held):
            remove(old)
    for partial in folder.glob("step-*" + PARTIAL):
        remove(partial)
