"""What the host decides by, where no kernel computes: put in by hand."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from fairhuman.common.transfer import HostCopy
from stub.counters import Counters


def inject(counters: Counters) -> None:
    """Have every objective be present, every gradient finite, and no attempt made at computing."""
    _count_triton(counters)
    _convolve_without_columns(counters)
    _measure_as_orthogonal()
    _nobody_asks_to_stop()
    from fairhuman.models.families.sdxl.model import SDXL
    from fairhuman.training import run, step
    from fairhuman.zero import engine

    put(step, "HostCopy", _Present)
    put(engine, "check_deepspeed", lambda config: None)  # it compares numbers
    put(run, "frozen_digest", lambda module: None)  # reads all weights
    put(run, "check_model", lambda model: SDXL)  # asks the hub


def put(owner: Any, name: str, value: Any) -> None:
    """Replace something for good."""
    patch.object(owner, name, value).start()


def _count_triton(counters: Counters) -> None:
    """Have Triton's kernels counted and not compiled: all around them is as it is."""
    from triton.runtime.jit import JITFunction

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        counters.launch()

    put(JITFunction, "run", run)


def _convolve_without_columns(counters: Counters) -> None:
    """Have torch's own convolution take the memory of cuDNN's, without a workspace.

    The library's own is switched off, for it would have to be a library that does nothing too.
    """
    torch.backends.cudnn.enabled = False
    torch.backends.cuda.enable_cudnn_sdp(False)
    library = torch.library.Library("aten", "IMPL")

    def forward(
        x: Tensor, weight: Tensor, size: Any, bias: Any, stride: Any, padding: Any
    ) -> Tensor:
        shape = [
            (x.shape[2 + i] + 2 * padding[i] - size[i]) // stride[i] + 1 for i in range(len(size))
        ]
        counters.launch()
        return x.new_empty(x.shape[0], weight.shape[0], *shape)

    def backward(
        gradient: Tensor, x: Tensor, weight: Tensor, size: Any, stride: Any, padding: Any, mask: Any
    ) -> tuple[Tensor | None, ...]:
        shapes = (x.shape, weight.shape, weight.shape[:1])
        for _ in filter(None, mask):
            counters.launch()
        return tuple(
            x.new_empty(shape) if wanted else None
            for shape, wanted in zip(shapes, mask, strict=True)
        )

    library.impl("_slow_conv2d_forward", forward, "CUDA", allow_override=True)
    library.impl("_slow_conv2d_backward.output_mask", backward, "CUDA", allow_override=True)
    _kept.append(library)  # its end would undo it


def _nobody_asks_to_stop() -> None:
    """Have the flag be 0 that no kernel writes."""
    from fairhuman.training import stop

    full = torch.full

    def zero(*args: Any, **kwargs: Any) -> Tensor:
        flag = full(*args, **kwargs)
        ctypes.memset(flag.data_ptr(), 0, flag.nbytes)
        return flag

    module = SimpleNamespace(**vars(torch))
    module.full = zero
    put(stop, "torch", module)


_kept: list[Any] = []


def _measure_as_orthogonal() -> None:
    """Give every Gram matrix as that of orthonormal gradients, and solve that on the host."""
    from fairhuman.fairness.mpd import MPDSolution
    from fairhuman.fairness.solve import Solver
    from fairhuman.training.balancers.sketch import Sketches
    from fairhuman.zero.gradients import Gradients

    solve = Solver.__call__

    def solved(self: Solver, gram: Tensor, keeps: bool = True) -> MPDSolution:
        found = solve(self, torch.eye(len(gram), dtype=torch.float64), keeps)
        # As from the device's own solver, which is one kernel.
        return MPDSolution(found._row.pin_memory().to(gram.device, non_blocking=True))

    put(Solver, "__call__", solved)
    for kind in (Gradients, Sketches):
        put(kind, "gram", _orthonormal(kind.gram))


def _orthonormal(measure: Callable[..., Tensor]) -> Callable[[Any], Tensor]:
    def gram(self: Any) -> Tensor:
        count = len(measure(self))
        eye = torch.eye(count, dtype=torch.float64).pin_memory()
        return eye.to(_device(self), non_blocking=True)

    return gram


def _device(holder: Any) -> torch.device:
    """Return the device of `Gradients`, or of `Sketches`, which hold some."""
    device: torch.device = getattr(holder, "gradients", holder).engine.device
    return device


class _Present(HostCopy):
    """Areas of objectives that are there; as losses, finite ones."""

    def get(self) -> Tensor:
        return torch.full_like(super().get(), math.pi)
