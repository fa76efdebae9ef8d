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
from fairhuman.fairness.losses import LossRule
from fairhuman.fairness.mpd import MPDSolution, Normalize, Status, check_length
from fairhuman.fairness.rules import NATIVE, RULES, Rule, weighting
from fairhuman.fairness.scaled import active, refuse_scaled, scale_of
from fairhuman.fairness.solve import Solver

if TYPE_CHECKING:
    from torch.amp import GradScaler
    from torch.distributed.tensor import DTensor

Row = list[Tensor | None]
"""One objective's gradients, in the parameters' order; None where it does not reach one."""


def fair_backward(
    losses: Tensor | Sequence[Tensor],
    parameters: Iterable[Tensor],
    alpha: float = 2.0,
    normalize: Normalize = "ball",
    max_norm: float | None = 1.0,
    group: dist.ProcessGroup | None = None,
    scaler: GradScaler | None = None,
    keep: float = 0.0,
    anchor: int = 0,
    rule: Rule | LossRule = "mpd",
) -> MPDSolution:
    """Write the fair direction of K losses into `p.grad`: instead of `loss.backward()`.

    One backward pass per loss; then ``d = sum_k w_k g_k`` with weights by a rule, that of FairHuman
    (arXiv 2507.02714) by default: ``A w = w^(-1/alpha)``, ``A`` the Gram matrix of the gradients.
    What was in `p.grad` is replaced;
    parameters that no loss reaches get a gradient of zeros.

    In a distributed run every rank calls this with the same number of losses and the same
    parameters. The gradients of all losses are averaged over the ranks before the Gram matrix is
    taken: by this function for plain and DDP models (DDP's own reduction does not run, for there
    is no `backward`), by FSDP2 for a `fully_shard`-ed model.

    On a CUDA device nothing here waits for it. A gradient that is not finite gives weights of 0,
    hence a zero direction, and `Status.NONFINITE`: look at `solved` before `optimizer.step()`,
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
        keep: the least cosine of d to the gradient of losses[anchor], from 0 (no bound) to below 1;
            see `solve_mpd`.
        anchor: the loss that `keep` is about.
        rule: how the weights follow from the Gram matrix, a name of `fairness.rules`; or an object
            of `fairness.losses`, such as ``DWA(K)``, that is kept from step to step: its weights
            follow from the losses of earlier steps, one backward pass is made of their weighted
            sum, and the solution's cosine is NaN. `alpha` belongs to "mpd" and "log_mpd". For all
            but these and "nash" the host waits for the device.

    Returns:
        The solution, the same on every rank; a scaler leaves no trace in it. `p.grad` holds
        ``scale * d``, times the scaler's scale.

    Raises:
        ValueError: no losses, a loss that is no scalar or that a GradScaler has scaled (see
            `scaled.refuse_scaled` for what is noticed), no parameter that requires a gradient,
            parameters of which some are sharded and some are not, or that FSDP2 has gathered
            for the forward pass; a rule that is unknown, of another number of losses, or without
            what it was given (alpha, keep); and as `solve_mpd`.
        ImportError: a package of the extra `rules` is missing.
    """
    losses = list(losses)
    trained = [p for p in parameters if p.requires_grad]
    refuse_gathered(trained)
    _check(losses, trained)
    solver = _solver(rule, len(losses), alpha, normalize, max_norm, keep, anchor)
    scaler = active(scaler)
    refuse_scaled(losses, scaler)
    means: Tensor | None = None
    if isinstance(rule, LossRule) or solver.needs_losses:
        means = _means(losses, trained[0].device, group)
    if isinstance(rule, LossRule):
        assert means is not None
        shown = means.tolist()
        shares = rule.weights([loss != 0 for loss in shown])
        losses = [_weighted_sum(losses, shares)]
    if scaler:
        losses = [scaler.scale(loss) for loss in losses]
    sharded = _is_sharded(trained[0])
    take = _sharded_backward if sharded else _plain_backward
    rows = [take(loss, trained, keep_graph=k + 1 < len(losses)) for k, loss in enumerate(losses)]
    if not sharded and dist.is_initialized() and dist.get_world_size(group) > 1:
        rows = [_averaged(row, trained, group) for row in rows]
    parts = _by_presence(rows)
    gram = _gram(rows, parts, trained[0].device)
    if _is_sharded(trained[0]):
        dist.all_reduce(gram, group=_shard_group(trained[0]))
    if scaler:
        gram /= scale_of(scaler, gram.device) ** 2
    if isinstance(rule, LossRule):
        solution = _of_sum(gram, shares, solver)
        if bool(solution.solved):
            rule.learn(shown)
        weights = solution.scale.where(solution.solved, 0.0)[None]
    else:
        solution = solver(gram, losses=means)
        weights = solution.weights * solution.scale
    if scaler:
        # In every gradient, for each optimizer looks for it in its own.
        weights = torch.where(solution.solved, weights, math.inf)
    for p, direction in zip(trained, _combined(rows, parts, weights, trained), strict=True):
        p.grad = _like(p, direction)
    return solution


def _solver(
    rule: Rule | LossRule,
    count: int,
    alpha: float,
    normalize: Normalize,
    max_norm: float | None,
    keep: float,
    anchor: int,
) -> Solver:
    """Return the solver, having checked what the rule can be given."""
    if not isinstance(rule, LossRule):
        if rule not in RULES:
            raise ValueError(
                f"rule must be one of {', '.join(RULES)}, or an object that follows the losses, "
                f"such as fairhuman.DWA({count}); not {rule!r}"
            )
        if rule not in NATIVE:
            weighting(rule)  # a package may be missing
        return Solver(alpha, normalize, max_norm, keep=keep, rule=rule, anchor=anchor)
    name = type(rule).__name__
    if rule.count != count:
        raise ValueError(f"rule={name} is of {rule.count} losses, and losses holds {count}")
    if keep:
        raise ValueError(f"keep = {keep:g}: rule={name} makes one backward pass, and cannot bound")
    if alpha != Solver.alpha:
        raise ValueError(f"alpha = {alpha:g}: rule={name} has no alpha")
    check_length(normalize, max_norm)
    return Solver(normalize=normalize, max_norm=max_norm)


def _means(
    losses: Sequence[Tensor], device: torch.device, group: dist.ProcessGroup | None
) -> Tensor:
    """Return the losses averaged over the ranks, [K] float64."""
    means = torch.stack([loss.detach().reshape(()).to(device, torch.float64) for loss in losses])
    if dist.is_initialized() and dist.get_world_size(group) > 1:
        dist.all_reduce(means, group=group)
        means /= dist.get_world_size(group)
    return means


def _weighted_sum(losses: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Return sum_k w_k l_k; what is absent on all ranks is 0, and its graph may be needed."""
    terms = [w * loss.reshape(()) for loss, w in zip(losses, weights.tolist(), strict=True)]
    return torch.stack([term.to(terms[0]) for term in terms]).sum()


def _of_sum(gram: Tensor, weights: Tensor, solver: Solver) -> MPDSolution:
    """Return the solution with K weights given, from the [1, 1] Gram matrix of their sum."""
    norm = gram[0, 0].sqrt()
    if not bool(norm.isfinite()):
        return MPDSolution.none(len(weights)).to(gram.device)
    weights = weights.to(gram.device)
    return MPDSolution.of(
        weights,
        norm=norm,
        residual=math.nan,
        scale=solver.factor(norm, weights.sum()),
        cosine=math.nan,
        iterations=0,
        status=Status.OK if bool((weights > 0).all()) else Status.ABSENT,
    )


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


def _plain_backward(loss: Tensor, trained: Sequence[Tensor], keep_graph: bool) -> Row:
    """Return the local gradients without touching `p.grad`, so that no hook of DDP runs."""
    if not loss.requires_grad:
        return [None] * len(trained)
    found = torch.autograd.grad(loss, trained, retain_graph=keep_graph, allow_unused=True)
    return list(found)


def _sharded_backward(loss: Tensor, trained: Sequence[Tensor], keep_graph: bool) -> Row:
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


def _averaged(row: Row, trained: Sequence[Tensor], group: dist.ProcessGroup | None) -> Row:
    """Return the mean over the ranks, of which some may lack a gradient that others have."""
    averaged: Row = [None] * len(trained)
    for kind in dict.fromkeys((p.dtype, p.device) for p in trained):
        places = [i for i, p in enumerate(trained) if (p.dtype, p.device) == kind]
        sizes = [trained[i].numel() for i in places]
        # One collective; the views are as good as what was copied.
        buffer = torch.zeros(sum(sizes), dtype=kind[0], device=kind[1])
        for i, part in zip(places, buffer.split(sizes), strict=True):
            averaged[i] = part.view(trained[i].shape)
            if (gradient := row[i]) is not None:
                averaged[i].copy_(gradient)  # type: ignore[union-attr]
                row[i] = None
        dist.all_reduce(buffer, group=group)
        buffer /= dist.get_world_size(group)
    return averaged


def _by_presence(rows: Sequence[Row]) -> list[tuple[list[int], list[int]]]:
    """Return (objectives, parameters) such that just these objectives reach these parameters."""
    parts: dict[tuple[int, ...], list[int]] = {}
    for place, column in enumerate(zip(*rows, strict=True)):
        there = tuple(k for k, gradient in enumerate(column) if gradient is not None)
        parts.setdefault(there, []).append(place)
    return [([*there], places) for there, places in parts.items()]


def _chosen(rows: Sequence[Row], there: Sequence[int], places: Sequence[int]) -> list[list[Tensor]]:
    return [[rows[k][place] for place in places] for k in there]  # type: ignore[misc]


def _gram(
    rows: Sequence[Row], parts: Sequence[tuple[list[int], list[int]]], device: torch.device
) -> Tensor:
    """Return A, [K, K] float64: products of gradients that are not there are 0 without zeros."""
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=device)
    for there, places in parts:
        if not there:
            continue
        part = ops.gram(_chosen(rows, there, places))
        if len(there) == len(rows):
            total += part
            continue
        for i, line in zip(there, part, strict=True):
            for j, product in zip(there, line, strict=True):
                total[i, j] += product
    return total


def _combined(
    rows: Sequence[Row],
    parts: Sequence[tuple[list[int], list[int]]],
    weights: Tensor,
    trained: Sequence[Tensor],
) -> list[Tensor]:
    """Return the direction, in new tensors: autograd's may be another's too, or expanded."""
    direction = [torch.empty_like(_local(p)) for p in trained]
    for there, places in parts:
        out = [direction[place] for place in places]
        if there:
            chosen = torch.stack([weights[k] for k in there])
            ops.combine(_chosen(rows, there, places), chosen, out)
        else:
            zero = 0.0 * weights.sum()  # NaN where the scaler is to notice it
            for tensor in out:
                tensor.copy_(zero)
    return direction


def _local(p: Tensor) -> Tensor:
    return p.to_local() if _is_sharded(p) else p


def _like(p: Tensor, local: Tensor) -> Tensor:
    """Return a gradient of the parameter's kind."""
    if not _is_sharded(p):
        return local
    return type(p).from_local(local, p.device_mesh, p.placements, shape=p.shape, stride=p.stride())
