"""The tables of docs/planning.md: `python -m fairhuman.planning`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Literal

from fairhuman.common.units import GIB
from fairhuman.planning.plan import MODES, SDXL_PARAMETERS, Plan


def tables() -> str:
    """Return what SDXL's UNet needs on 1, 8, 64 and 512 GPUs, in Markdown."""
    return "\n\n".join(_table(stage) for stage in (2, 3))


def _table(stage: Literal[2, 3]) -> str:
    lines = [
        f"### ZeRO-{stage}",
        "",
        "| GPUs | mode | weights and optimizer | gradients | buffers | total | sent per step |",
        "| --- " * 7 + "|",
    ]
    for ranks in (1, 8, 64, 512):
        for mode in MODES:
            plan = Plan(SDXL_PARAMETERS, ranks, stage, mode)
            parts = (
                plan.model_bytes(),
                plan.gradient_bytes(),
                plan.working_bytes(),
                plan.device_bytes(),
                plan.sent_bytes(),
            )
            figures = " | ".join(f"{part / GIB:.1f}" for part in parts)
            lines.append(f"| {ranks} | {mode} | {figures} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables."""
    argparse.ArgumentParser(prog="python -m fairhuman.planning", description=__doc__).parse_args(
        argv
    )
    print(tables())
    return 0


if __name__ == "__main__":
    sys.exit(main())
