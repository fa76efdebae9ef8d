"""docs/planning.md, with its tables: `python -m fairhuman.planning`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Literal

from fairhuman.common.units import GIB
from fairhuman.planning.plan import FROZEN_BYTES, MODES, SDXL_PARAMETERS, Plan


def page() -> str:
    """Return docs/planning.md: SDXL's UNet on 1, 8, 64 and 512 GPUs, in Markdown."""
    offload = Plan(SDXL_PARAMETERS, 1, 2, "sketch", offload_optimizer=True)
    return _PAGE.format(
        frozen=FROZEN_BYTES / GIB,
        exact_rows=4 * 3 * SDXL_PARAMETERS / GIB,
        tables="\n\n".join(_table(stage) for stage in (2, 3)),
        offload_device=offload.device_bytes() / GIB,
        offload_host=offload.host_bytes() / GIB,
    )


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


_PAGE = """\
# Planning a run

What full fine-tuning of SDXL's UNet (2.567 billion parameters) asks of each GPU, in bf16 with
AdamW8bit, three objectives and one micro-batch per step. Computed by `python -m fairhuman.planning`
from formulas that the tests hold against the tensors and the collectives of running engines
(two CPU ranks, ZeRO-1, 2 and 3); nothing on this page was measured on a GPU.

All figures are GiB of one rank. To them come {frozen:.1f} GiB for the frozen text encoders and the
VAE, and the activations, which are the same in every mode: `exact` keeps one graph and goes through
it three times. `model.gradient_checkpointing` makes them small and costs one more forward pass per
backward pass. `amortized` holds `exact`'s memory, for it takes exact steps now and then; what it
sends is that of a step in between. Outside of ZeRO-3 both need one gradient's shard more for a
moment, while the last one is added to its row.

`fairhuman doctor --config FILE --gpus N [section.key=value …]` adds all of this up for a config,
and counts its activations: for every method, every phase of a run, without weights or a GPU.

{tables}

What is sent is the volume on a ring: 2 (N-1)/N of the gradients per all-reduce under ZeRO-2, and
the weights once. Under ZeRO-3 it is the most that can be: a larger `stage3_max_live_parameters`
keeps weights from being fetched again. With m micro-batches m times as many gradients are sent, but
for ZeRO-1 in the other modes than `exact`, which adds its micro-batches up first.

## Which to choose

- **One GPU.** The gradients of three objectives are {exact_rows:.1f} GiB in float32. On 80 GiB take
  `exact`, or `amortized` for nearly the price of plain fine-tuning. Where they have no room,
  `sketch` has plain fine-tuning's memory. With `configs/deepspeed/zero2_offload.json` masters,
  moments and gradients are in the CPU's memory: `sketch` then needs {offload_device:.1f} GiB on
  the GPU and {offload_host:.1f} GiB on the host.
- **8 GPUs of one machine.** The rows of `exact` are an eighth. ZeRO-2 with `exact` where the GPUs
  talk over NVLink, `amortized` where the step must cost what plain fine-tuning costs.
- **64 and 512 GPUs.** Memory is no matter any more, the network is: `exact` sends three times the
  gradients. Take `amortized` (its refreshes are a fifth of the steps by default; set
  `fairness.refresh_every=10` for half of that), with ZeRO-1 if micro-batches are accumulated
  (in bf16 it keeps one whole float32 gradient per rank).
- **Weights that do not fit.** ZeRO-3, with `amortized` or `sketch` for the same reason.

Compute, in forward passes of one micro-batch (a backward pass counts 2): plain 3, `exact` 7,
`amortized` 3.8 (3.4 with `refresh_every=10`), `sketch` 9, or 10 per micro-batch where there are
several. Measured ratios of each mode are in the README.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the page."""
    argparse.ArgumentParser(prog="python -m fairhuman.planning").parse_args(argv)
    sys.stdout.write(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
