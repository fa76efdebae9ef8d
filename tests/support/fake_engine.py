"""What stands in for DeepSpeed, the ranks and what only CUDA has, on the device of `fake_gpu`.

The gradients of ZeRO-2 and their reducer are the trainer's own; DeepSpeed's optimizer is a list of
its sizes, and its step does nothing. Of a Triton kernel all runs but the launch; the native solver
returns a vector that nothing is in.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from fake_gpu import NAME, FakeGPU
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from triton.runtime import JITFunction

import fairhuman.training.balancers.base as exact
import fairhuman.training.balancers.sketch as sketch
import fairhuman.zero.reducer as reducer
from fairhuman import _C
from fairhuman.fairness import mpd, ops, solve
from fairhuman.fairness.mpd import MPDSolution
from fairhuman.zero.optimizers import LARGEST_GROUP
from fairhuman.zero.parts import cut
from fairhuman.zero.reduced import ReducedGradients
from fairhuman.zero.shard_map import Buffer, Piece

RANKS = 2
FIELDS: int = _C.build_info()["mpd_fields"]


class FakeEngine:
    """An engine under ZeRO-2, of the shipped config's settings."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.module = module
        self.device = device
        trained = {p: name for name, p in module.named_parameters() if p.requires_grad}
        groups = list(cut(trained, LARGEST_GROUP))
        self.param_names = trained
        self.optimizer = SimpleNamespace(
            _grad_acc_hooks=[],
            averaged_gradients={},
            bit16_groups=groups,
            communication_data_type=torch.bfloat16,
            loss_scale=1.0,
            overlap_comm=True,
            partition_size=[-(-sum(p.numel() for p in group) // RANKS) for group in groups],
            reduce_bucket_size=500_000_000,
        )

    def gradient_accumulation_steps(self) -> int:
        return 1

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None:
        pass

    def zero_optimization_partition_weights(self) -> bool:
        return False

    def was_step_applied(self) -> bool:
        return True

    def step(self) -> None:
        self.optimizer.averaged_gradients.clear()


def buffers_of(engine: FakeEngine) -> list[tuple[Buffer, Tensor]]:
    """The buffers of the first rank: what `shard_map.buffers_of` tells from addresses."""
    found = []
    optimizer = engine.optimizer
    for index, (group, size) in enumerate(
        zip(optimizer.bit16_groups, optimizer.partition_size, strict=True)
    ):
        pieces, start = [], 0
        for p in group:
            count = min(p.numel(), size - start)
            if count > 0:
                pieces.append(Piece(engine.param_names[p], 0, count, start))
            start += p.numel()
        found.append((Buffer(index, size, pieces), torch.empty(0)))
    return found


def install(gpu: FakeGPU) -> None:
    """Put the stand-ins in their places, in this process."""
    _stand_in_for_ranks(gpu)
    reducer.buffers_of = buffers_of  # type: ignore[assignment]
    ops._takes_triton = lambda tensor: tensor.device.type == NAME
    ops.solve_mpd = _solve_mpd  # type: ignore[assignment]
    solve.keep_mpd = _keep_mpd  # type: ignore[assignment]
    FakeTensor.data_ptr = _address  # type: ignore[assignment, method-assign]

    def launch(kernel: Any, *args: Any, **options: Any) -> None:
        for argument in args:
            for tensor in argument if isinstance(argument, tuple) else [argument]:
                if isinstance(tensor, Tensor):
                    assert tensor.device == gpu.device, f"{kernel.__name__}: {tensor.device}"

    JITFunction.run = launch


def make_gradients(engine: FakeEngine) -> ReducedGradients:
    """Return gradients whose buckets are made, as they are after a run's first backward pass."""
    gradients = ReducedGradients(engine)  # type: ignore[arg-type]
    gradients._reducer._comm = SimpleNamespace(all_reduce=dist.all_reduce)
    gradients.start(1, 1)
    gradients.backward([torch.zeros((), device=engine.device, requires_grad=True)])
    gradients.skip()
    exact.make_gradients = sketch.make_gradients = lambda engine: gradients
    return gradients


def _stand_in_for_ranks(gpu: FakeGPU) -> None:
    def collective(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        gpu.check_collective(tensor)
        return SimpleNamespace(wait=lambda: None)  # NCCL's makes the stream wait, not the host

    dist.all_reduce = collective
    dist.broadcast = collective
    dist.get_rank = lambda group=None: 0
    dist.get_world_size = lambda group=None: RANKS


def _solve_mpd(gram: Tensor, *args: Any) -> MPDSolution:
    if gram.device.type != NAME:
        return _real_solve_mpd(gram, *args)
    return MPDSolution(torch.empty(len(gram) + FIELDS, dtype=torch.float64, device=gram.device))


def _keep_mpd(gram: Tensor, solution: MPDSolution, *args: Any) -> MPDSolution:
    if gram.device.type != NAME:
        return _real_keep_mpd(gram, solution, *args)
    return MPDSolution(solution._row.clone())


_real_solve_mpd, _real_keep_mpd = ops.solve_mpd, mpd.keep_mpd


def _address(tensor: Tensor) -> int:
    """Return an address of its own for every tensor, as `data_ptr` would."""
    return tensor.untyped_storage()._cdata + tensor.storage_offset() * tensor.element_size()
