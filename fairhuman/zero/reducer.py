"""Backward passes whose gradients are added to a rank's shard, bucket by bucket."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from fairhuman.zero.protocol import Engine
from fairhuman.zero.shard_map import Piece, buffers_of

BUCKET = 2**26
"""Elements of a bucket, unless one parameter has more."""


class _Place(NamedTuple):
    """Where this rank's elements of a parameter are in its shard."""

    group: int
    piece: Piece


class _Part(NamedTuple):
    """Elements of a bucket that go to this rank's shard."""

    start: int
    place: _Place


@dataclass
class _Bucket:
    parameters: list[Tensor]
    parts: list[_Part]
    numel: int
    missing: int = 0
    """Gradients that are still to come in this backward pass."""


class _Sent(NamedTuple):
    """A bucket that is on its way between the ranks."""

    work: Any
    bucket: _Bucket
    buffer: Tensor


class Reducer:
    """Takes the place of the hooks by which DeepSpeed's ZeRO-1 and ZeRO-2 reduce gradients.

    Buckets are reduced in the same order on every rank, whatever the order in which its gradients
    come: that in which they came in rank 0's first backward pass. That one reduces all at its end.
    """

    def __init__(self, engine: Engine) -> None:
        zero = engine.optimizer
        self.engine = engine
        self.ranks = dist.get_world_size()
        self.dtype: torch.dtype = zero.communication_data_type
        for hook in zero._grad_acc_hooks:
            hook.remove()
        zero._grad_acc_hooks.clear()
        self._parameters: list[Tensor] = [p for group in zero.bit16_groups for p in group]
        self._places = _places(engine)
        for p in self._parameters:
            p.register_post_accumulate_grad_hook(self._arrived)
        self._use(self._parameters)
        self._arrivals: list[Tensor] | None = []
        """In the first backward pass, the parameters as their gradients come."""
        self._shard: list[Tensor] | None = None
        """Where the gradients of the backward pass that is running go."""
        self._fresh = False
        self._next = 0
        self._sent: _Sent | None = None

    def backward(self, loss: Tensor, shard: list[Tensor], fresh: bool, keep_graph: bool) -> None:
        """Add the gradient of a loss, averaged over micro-batches and ranks; a collective.

        Args:
            loss: a scalar.
            shard: one flat float32 tensor per parameter group, to which this rank's part of
                loss scale * gradient is added.
            fresh: whether the shard is zero.
            keep_graph: whether another backward pass of this graph will follow.
        """
        scale = float(self.engine.optimizer.loss_scale)
        factor = scale / (self.engine.gradient_accumulation_steps() * self.ranks)
        for bucket in self._buckets:
            bucket.missing = len(bucket.parameters)
        self._shard, self._fresh, self._next = shard, fresh, 0
        try:
            (loss * factor).backward(retain_graph=keep_graph)
            while self._next < len(self._buckets):  # parameters that the loss does not reach
                self._reduce()
            self._receive()
        finally:
            self._shard = self._sent = None
        if self._arrivals is not None:
            self._use(self._agreed_order(self._arrivals))
            self._arrivals = None

    def _arrived(self, p: Tensor) -> None:
        """Count a gradient in; reduce the buckets that are complete and whose turn it is."""
        if self._shard is None:
            return  # a backward pass of somebody else
        bucket = self._bucket_of[p]
        bucket.missing -= 1
        if bucket.missing < 0:
            raise RuntimeError("a parameter's gradient came twice in one backward pass")
        if self._arrivals is not None:
            self._arrivals.append(p)
            return
        while self._next < len(self._buckets) and not self._buckets[self._next].missing:
            self._reduce()

    def _reduce(self) -> None:
        """Gather the next bucket's gradients and start their sum over the ranks."""
        bucket = self._buckets[self._next]
        self._next += 1
        dtype = self.dtype if self.ranks > 1 else torch.float32
        buffer = torch.empty(bucket.numel, dtype=dtype, device=bucket.parameters[0].device)
        targets, gradients = [], []
        pieces = buffer.split_with_sizes([p.numel() for p in bucket.parameters])
        for p, piece in zip(bucket.parameters, pieces, strict=True):
            if p.grad is None:
                piece.zero_()
            else:
                targets.append(piece.view_as(p))
                gradients.append(p.grad)
                p.grad = None
        if gradients:
            torch._foreach_copy_(targets, gradients)
        del gradients
        self._receive()
        work = dist.all_reduce(buffer, async_op=True) if self.ranks > 1 else None
        self._sent = _Sent(work, bucket, buffer)

    def _receive(self) -> None:
        """Add this rank's part of the bucket that was sent last to its shard."""
        if self._sent is None:
            return
        assert self._shard is not None
        work, bucket, buffer = self._sent
        self._sent = None
        if work is not None:
            work.wait()
        if not self._fresh:
            buffer = buffer.float()
        sources, targets = [], []
        for start, (group, piece) in bucket.parts:
            sources.append(buffer[start : start + piece.numel])
            targets.append(self._shard[group][piece.offset : piece.offset + piece.numel])
        if not targets:
            return
        if self._fresh:
            torch._foreach_copy_(targets, sources)
        else:
            torch._foreach_add_(targets, sources)

    def _use(self, order: Iterable[Tensor]) -> None:
        self._buckets = list(_buckets(order, self._places))
        self._bucket_of = {p: bucket for bucket in self._buckets for p in bucket.parameters}

    def _agreed_order(self, arrivals: Sequence[Tensor]) -> list[Tensor]:
        """Return rank 0's order of all parameters, those that did not come at the end."""
        numbers = {p: number for number, p in enumerate(self._parameters)}
        order = list(dict.fromkeys([*(numbers[p] for p in arrivals), *numbers.values()]))
        agreed = torch.tensor(order, device=self.engine.device)
        dist.broadcast(agreed, 0)
        return [self._parameters[number] for number in agreed.tolist()]


def _places(engine: Engine) -> dict[Tensor, _Place]:
    """Return where this rank's part of each parameter is; others have none."""
    named = {name: p for p, name in engine.param_names.items()}
    return {
        named[piece.name]: _Place(buffer.group, piece)
        for buffer, _ in buffers_of(engine)
        for piece in buffer.pieces
    }


def _buckets(order: Iterable[Tensor], places: dict[Tensor, _Place]) -> Iterable[_Bucket]:
    """Cut the parameters into buckets of about the same size."""
    bucket = _Bucket([], [], 0)
    for p in order:
        if bucket.parameters and bucket.numel + p.numel() > BUCKET:
            yield bucket
            bucket = _Bucket([], [], 0)
        if p in places:
            bucket.parts.append(_Part(bucket.numel + places[p].piece.start, places[p]))
        bucket.parameters.append(p)
        bucket.numel += p.numel()
    if bucket.parameters:
        yield bucket
