"""Fair gradients in anyone's own loop: plain PyTorch, DDP and FSDP2.

The trainer itself does not use this: under DeepSpeed ZeRO the gradients are somewhere else
(fairness/zero).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor

from fairhuman.fairness import ops
from fairhuman.fairness.gathered import refuse_gathered
from fairhuman.fairness.mpd import MPDSolution, Normalize, Status
from fairhuman.fairness.scaled import active, refuse_scaled, scale_of

if TYPE_CHECKING:
    from torch.amp import GradScaler
    from torch.distributed.tensor import DTensor


def fair_backward(
    losses: Tensor | Sequence[Tensor],
    parameters: Iterable[Tensor],
    alpha: float = 2.0,
    normalize: Normalize = "ball",
    max_norm: float | None = 1.0,
    group: dist.ProcessGroup | None = None,
    scaler: GradScaler | None = None,
) -> MPDSolution:
    """Write the fair direction of K losses into `p.grad`: instead of `loss.backward()`.

    One backward pass per loss; then ``d = sum_k w_k g_k`` with ``A w = w^(-1/alpha)``, ``A`` the
    Gram matrix of the gradients (FairHuman, arXiv 2507.02714). What was in `p.grad` is replaced;
    parameters that no loss reaches get a gradient of zeros.

    In a distributed run every rank calls this with the same number of losses and the same
    parameters. The gradients of all losses are averaged over the ranks before the Gram matrix is
    taken: by this function for plain and DDP models (DDP's own reduction does not run, for there
    is no `backward`), by FSDP2 for a `fully_shard`-ed model.

    On a CUDA device nothing here waits for it. A gradient that is not finite gives weights of 0,
    hence a zero direction, and `Status.NONFINITE`: look at `status` before `optimizer.step()`,
    whose momentum would move the parameters all the same.

    Under fp16 autocast give the losses as they are, and the `GradScaler`: the backward passes are
    made with its scale, the Gram matrix is free of it, and `p.grad` carries it, for
    ``scaler.step(optimizer)`` and ``scaler.update()`` as after ``scaler.scale(loss).backward()``.
    A gradient that is not finite then makes every `p.grad` so, by which the scaler skips the step
    of each optimizer and lowers the scale.

    Args:
        losses: K scalars, [K] or a sequence, of one forward pass (their graphs may be shared).
            A loss without a graph, such as a constant 0, is an absent objective.
        parameters: what is trained, in the same order on every rank; under FSDP2 as they are
            outside a forward pass, that is, those that the optimizer was given.
        alpha: the fairness exponent; 2 is Minimum Potential Delay, 1 proportional fairness.
        normalize: see `solve_mpd`; "ball" gives every step the norm `max_norm`.
        max_norm: the norm of the ball, or what the norm of d is clipped to.
        group: the ranks to average over; None: all.
        scaler: that of the loop; None, or one that is not enabled: no scale.

    Returns:
        The solution, the same on every rank; a scaler leaves no trace in it. `p.grad` holds
        ``scale * d``, times the scaler's scale.

    Raises:
        ValueError: no losses, a loss that is no scalar or that a GradScaler has scaled (see
            `scaled.refuse_scaled` for what is noticed), no parameter that requires a gradient,
            parameters of which some are sharded and some are not, or that FSDP2 has gathered
            for the forward pass; and as `solve_mpd`.
    """
    losses = list(losses)
    trained = [p for p in parameters if p.requires_grad]
    refuse_gathered(trained)
    _check(losses, trained)
    scaler = active(scaler)
    refuse_scaled(losses, scaler)
    if scaler:
        losses = [scaler.scale(loss) for loss in losses]
    sharded = _is_sharded(trained[0])
    gradients = _Gradients(len(losses), trained)
    for k, loss in enumerate(losses):
        take = _sharded_backward if sharded else _plain_backward
        gradients.put(k, take(loss, trained, keep_graph=k + 1 < len(losses)))
    if not sharded:
        gradients.average(group)
    gram = ops.gram(gradients.rows)
    if _is_sharded(trained[0]):
        dist.all_reduce(gram, group=_shard_group(trained[0]))
    if scaler:
        gram /= scale_of(scaler, gram.device) ** 2
    solution = ops.solve_mpd(gram, alpha, normalize, max_norm)
    weights = solution.weights * solution.scale
    if scaler:
        # In every gradient, for each optimizer looks for it in its own.
        weights = torch.where(solution.status >= Status.NONFINITE, math.inf, weights)
    gradients.assign(weights)
    return solution


def _is_sharded(parameter: Tensor) -> TypeGuard[DTensor]:
    from torch.distributed.tensor import DTensor  # takes a second: not with `import fairhuman`

    return isinstance(parameter, DTensor)


def _check(losses: Sequence[Tensor], trained: Sequence[Tensor]) -> None:
    if not losses:
        raise ValueError("losses must hold at least one scalar")
    for k, loss in enumerate(losses):
        if loss.numel() != 1:
            raise ValueError(f"losses[{k}] must be a scalar, not {list(loss.shape)}")
    if not trained:
        raise ValueError("parameters must hold at least one that requires a gradient")
    kinds = {_is_sharded(p) for p in trained}
    if len(kinds) > 1:
        raise ValueError("parameters must be all sharded by fully_shard, or none of them")


def _plain_backward(
    loss: Tensor, trained: Sequence[Tensor], keep_graph: bool
) -> list[Tensor | None]:
    """Return the local gradients without touching `p.grad`, so that no hook of DDP runs."""
    if not loss.requires_grad:
        return [None] * len(trained)
    found = torch.autograd.grad(loss, trained, retain_graph=keep_graph, allow_unused=True)
    return list(found)


def _sharded_backward(
    loss: Tensor, trained: Sequence[Tensor], keep_graph: bool
) -> list[Tensor | None]:
    """Return this rank's shards of the averaged gradients; FSDP2's hooks need a real backward."""
    for p in trained:
        p.grad = None
    if not loss.requires_grad:
        raise ValueError(
            "under FSDP2 every loss needs a graph, for its backward is a collective: add "
            "0.0 * output.sum() to a loss that may be a constant"
        )
    loss.backward(retain_graph=keep_graph)
    return [None if p.grad is None else p.grad.to_local() for p in trained]  # type: ignore[attr-defined]


def _shard_group(parameter: DTensor) -> dist.ProcessGroup:
    """Return the ranks that hold the parts of one copy of the parameter."""
    shards = [dim for dim, place in enumerate(parameter.placements) if place.is_shard()]
    if len(shards) != 1:
        raise ValueError(
            f"parameters must be sharded over one dimension of their mesh, not {len(shards)}"
        )
    return parameter.device_mesh.get_group(shards[0])


class _Gradients:
    """K gradients, each flat: one buffer [P] per objective, and per dtype and device."""

    def __init__(self, count: int, trained: Sequence[Tensor]) -> None:
        self.trained = trained
        local = [p.to_local() if _is_sharded(p) else p for p in trained]
        self.shapes = [p.shape for p in local]
        kinds = [(p.dtype, p.device) for p in local]
        self.kinds = list(dict.fromkeys(kinds))
        self.buffer_of = [self.kinds.index(kind) for kind in kinds]
        sizes = [0] * len(self.kinds)
        self.starts = []
        for p, buffer in zip(local, self.buffer_of, strict=True):
            self.starts.append(sizes[buffer])
            sizes[buffer] += p.numel()
        # Not one [K, P]: what outlives the step, as `p.grad`, is the first row alone.
        self.rows = [
            [
                torch.zeros(size, dtype=dtype, device=device)
                for size, (dtype, device) in zip(sizes, self.kinds, strict=True)
            ]
            for _ in range(count)
        ]

    def put(self, k: int, gradients: Sequence[Tensor | None]) -> None:
        for place, gradient in zip(self._places(k), gradients, strict=True):
            if gradient is not None:
                place.copy_(gradient)

    def average(self, group: dist.ProcessGroup | None) -> None:
        if not dist.is_initialized() or dist.get_world_size(group) == 1:
            return
        for row in self.rows:
            for buffer in row:
                dist.all_reduce(buffer, group=group)
                buffer /= dist.get_world_size(group)

    def assign(self, weights: Tensor) -> None:
        """Combine in place and let every `p.grad` be a view of the result."""
        ops.combine(self.rows, weights, out=self.rows[0])
        for p, place in zip(self.trained, self._places(0), strict=True):
            if _is_sharded(p):
                p.grad = type(p).from_local(
                    place, p.device_mesh, p.placements, shape=p.shape, stride=p.stride()
                )
            else:
                p.grad = place

    def _places(self, k: int) -> list[Tensor]:
        return [
            self.rows[k][buffer][start : start + shape.numel()].view(shape)
            for buffer, start, shape in zip(self.buffer_of, self.starts, self.shapes, strict=True)
        ]
