"""The trainer, which notes in a file what it is doing, so that it can be ended in the middle of it.

Run in place of `fairhuman/train.py`, with CHAOS_PHASE naming the file.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

from fairhuman import train
from fairhuman.training.run import Run

WIDTH = 16
PHASES = {
    "__init__": "start",
    "begin": "start",
    "save": "checkpoint",
    "measure": "validation",
    "draw_samples": "samples",
    "finish": "end",
}
"""Methods of Run, and what it does in them; else it is in a "step". Of one within another, the
outer counts: what is measured before the first step is the start's."""
LAST = ("__init__", "finish")
"""Those after which no step comes at once."""


def main() -> int:
    """Train."""
    # Opened once: noting must work where no file can be opened any more.
    descriptor = os.open(os.environ["CHAOS_PHASE"], os.O_WRONLY | os.O_CREAT)

    def note(phase: str) -> None:
        if os.environ["RANK"] == "0":
            os.pwrite(descriptor, phase.ljust(WIDTH).encode(), 0)

    within: list[str] = []

    def noting(method: Callable[..., Any], phase: str) -> Callable[..., Any]:
        @functools.wraps(method)
        def work(*args: Any, **kwargs: Any) -> Any:
            if within:
                return method(*args, **kwargs)
            within.append(phase)
            note(phase)
            done = method(*args, **kwargs)
            within.pop()
            if method.__name__ not in LAST:
                note("step")
            return done

        return work

    for name, phase in PHASES.items():
        setattr(Run, name, noting(getattr(Run, name), phase))
    return train.main()


if __name__ == "__main__":
    sys.exit(main())
