"""Takes a few of the trainer's steps over the CUDA runtime that does nothing, and counts.

python -m stub.measure CONFIG OUT [section.key=value …], as `stub.check` starts it
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

STEPS = 4
"""The first two find their buffers; what holds for the others is asked of."""


def main() -> None:
    config_file, out, *overrides = sys.argv[1:]
    from stub.counters import ROOT, Counters

    counters = Counters()
    import torch

    import fairhuman

    fairhuman.__path__.append(str(ROOT))  # where it is not installed, kernels/ is found there

    torch.set_num_threads(1)
    assert torch.cuda.is_available(), "torch does not see the CUDA runtime that does nothing"
    from fairhuman.common.quiet import quiet
    from fairhuman.config import load_config

    own = [
        "data.validation=4",
        f"train.steps={STEPS + 1}",
        "train.sample_every=0",
        "train.validate_every=0",
        "train.checkpoint_every=0",
        "train.resume=none",
        "optimizer.warmup_steps=1",
        "model.vae=null",
    ]
    config = load_config(config_file, [*own, *overrides])
    quiet()
    from fairhuman.training.loop import train
    from stub.empty_model import load_empty
    from stub.injected import inject

    inject(counters)
    lines = (
        (Path(str(config.data.root)) / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    )
    load_empty([json.loads(line)["text"] for line in lines])
    recorder = Recorder(counters, Path(out))
    train(config, overrides, lambda run: recorder.watch())


class Recorder:
    """Writes down each step, from its start to the start of the next."""

    def __init__(self, counters: Any, out: Path) -> None:
        self.counters = counters
        self.out = out
        self.steps: list[dict[str, Any]] = []
        self._parts: defaultdict[str, float] = defaultdict(float)
        self._before: tuple[float, dict[str, int]] | None = None
        self._last: tuple[float, dict[str, int]] = (0.0, {})

    def watch(self) -> None:
        """Be told of every step's start and of the ends of its parts."""
        from fairhuman.training.step_timer import StepTimer
        from stub.injected import put

        start, mark = StepTimer.start, StepTimer.mark

        def started(timer: StepTimer) -> None:
            self._end_step()
            start(timer)

        def marked(timer: StepTimer, part: str) -> None:
            mark(timer, part)
            self._end_part(part)

        put(StepTimer, "start", started)
        put(StepTimer, "mark", marked)

    def _end_part(self, part: str) -> None:
        now, counts = self._now()
        before, others = self._last
        self._parts[f"{part} s"] += now - before
        for name in ("launches", "products", "copies"):
            self._parts[f"{part} {name}"] += counts[name] - others[name]
        self._last = now, counts

    def _end_step(self) -> None:
        import torch

        now, counts = self._now()
        if self._before:
            before, others = self._before
            memory = torch.cuda.memory_stats()
            self.steps.append(
                {
                    **{name: counts[name] - others[name] for name in counts},
                    "host_s": now - before,
                    "allocated": torch.cuda.max_memory_allocated(),
                    "reserved": torch.cuda.max_memory_reserved(),
                    "retries": memory["num_alloc_retries"],
                    "places": dict(self.counters.waits),
                    "parts": dict(self._parts),
                }
            )
        else:
            # Before: what loading took.
            self.loaded = {
                "allocated": torch.cuda.max_memory_allocated(),
                "reserved": torch.cuda.max_memory_reserved(),
                "held": torch.cuda.memory_allocated(),
            }
        if len(self.steps) == STEPS:
            result = {"loaded": self.loaded, "steps": self.steps}
            self.out.write_text(json.dumps(result, indent=1), encoding="utf-8")
            sys.stdout.flush()
            os._exit(0)  # the end of a run would save weights
        torch.cuda.reset_peak_memory_stats()
        self.counters.waits.clear()
        self._parts.clear()
        self._before = self._last = self._now()

    def _now(self) -> tuple[float, dict[str, int]]:
        return time.process_time(), self.counters.read()


if __name__ == "__main__":
    main()
