"""Backward passes whose gradients are added to a rank's shard, bucket by bucket."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from fairhuman.models.recompute import SharedBlocks
from fairhuman.zero.parts import cut
from fairhuman.zero.protocol import Engine
from fairhuman.zero.shard_map import Piece, buffers_of

LARGEST_BUCKET = 2**26
"""Elements of a bucket at most, unless one parameter has more; larger ones only take memory."""


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


class Row(NamedTuple):
    """Where one objective's gradient goes."""

    shard: list[Tensor]
    """One flat float32 tensor per parameter group: this rank's part."""
    fresh: bool
    """Whether it is zero."""


class _Sent(NamedTuple):
    """A bucket of one objective's gradient that is on its way between the ranks."""

    work: Any
    bucket: _Bucket
    buffer: Tensor
    row: Row


class Reducer:
    """Takes the place of the hooks by which DeepSpeed's ZeRO-1 and ZeRO-2 reduce gradients.

    Of the config's section `zero_optimization` it keeps to `reduce_bucket_size` and `overlap_comm`.
    The first backward pass makes the buckets, from gradients that follow each other. Every rank
    must reduce the same ones in the same order: as long as gradients come in the same order
    everywhere, buckets are reduced when they are full; from where that ends, at the end of the
    pass, in rank 0's order. Later passes reduce each bucket when its turn has come and its
    gradients are there.
    """

    def __init__(self, engine: Engine) -> None:
        from deepspeed import comm

        zero = engine.optimizer
        self.engine = engine
        self._comm: Any = comm
        self.ranks = dist.get_world_size()
        self.dtype: torch.dtype = zero.communication_data_type if self.ranks > 1 else torch.float32
        self.bucket = min(int(zero.reduce_bucket_size), LARGEST_BUCKET)
        self.overlaps = bool(zero.overlap_comm)
        for hook in zero._grad_acc_hooks:
            hook.remove()
        zero._grad_acc_hooks.clear()
        parameters: list[Tensor] = [p for group in zero.bit16_groups for p in group]
        self._number = {p: number for number, p in enumerate(parameters)}
        self._places = _places(engine)
        for p in parameters:
            p.register_post_accumulate_grad_hook(self._arrived)
        self._buckets: list[_Bucket] = []
        self._bucket_of: dict[Tensor, _Bucket] = {}
        self._loose: dict[Tensor, None] | None = {}
        """In the first backward pass, the gradients that are in no bucket yet."""
        self._agrees = True
        """In the first backward pass, whether gradients came in the same order on all ranks."""
        self._rows: Sequence[Row] = ()
        """Where the gradients of the backward pass that is running go."""
        self._together: dict[Tensor, Sequence[Tensor | None]] | None = None
        """In a pass for several objectives, the K gradients that wait for their bucket."""
        self._next = 0
        self._sent: _Sent | None = None

    def forget(self) -> None:
        """Drop what backward passes of somebody else have left in the parameters."""
        for p in self._number:
            p.grad = None

    def backward(self, loss: Tensor, row: Row, keep_graph: bool) -> None:
        """Add the gradient of a loss, averaged over micro-batches and ranks; a collective.

        Args:
            loss: a scalar.
            row: to which this rank's part of loss scale * gradient is added.
            keep_graph: whether another backward pass of this graph will follow.

        Raises:
            RuntimeError: a parameter's gradient came in several parts.
        """
        with self._pass([row]):
            (loss * self._factor()).backward(retain_graph=keep_graph)

    def backward_together(
        self,
        losses: Sequence[Tensor],
        rows: Sequence[Row],
        blocks: SharedBlocks,
    ) -> None:
        """Add the gradients of K losses in one backward pass; see `SharedBlocks.backward`.

        Args:
            losses: K scalars.
            rows: one for each loss.
            blocks: of the model, which was called through them.

        Raises:
            RuntimeError: a parameter's gradient came in several parts.
        """
        factor = self._factor()
        self._together = {}
        with self._pass(rows):
            scaled = [loss * factor for loss in losses]
            blocks.backward(scaled, list(self._number), self._arrived_together)

    def _factor(self) -> float:
        scale = float(self.engine.optimizer.loss_scale)
        return scale / (self.engine.gradient_accumulation_steps() * self.ranks)

    @contextmanager
    def _pass(self, rows: Sequence[Row]) -> Iterator[None]:
        """Reduce what a backward pass in the block computes; then, zeros for what it does not."""
        for bucket in self._buckets:
            bucket.missing = len(bucket.parameters)
        self._rows, self._next = rows, 0
        try:
            yield
            if self._loose is not None:
                self._bucket_the_rest(self._loose)
            while self._next < len(self._buckets):  # parameters that no loss reaches
                self._reduce()
            self._receive()
        finally:
            self._rows, self._together, self._sent = (), None, None

    def _arrived_together(self, p: Tensor, gradients: Sequence[Tensor | None]) -> None:
        assert self._together is not None
        self._together[p] = gradients
        self._arrived(p)

    def _arrived(self, p: Tensor) -> None:
        """Count a gradient in; reduce the buckets that are complete and whose turn it is."""
        if not self._rows:
            return  # a backward pass of somebody else
        if self._loose is not None:
            self._collect(p, self._loose)
            return
        bucket = self._bucket_of[p]
        bucket.missing -= 1
        if bucket.missing < 0:
            raise RuntimeError(_IN_PARTS)
        while self._next < len(self._buckets) and not self._buckets[self._next].missing:
            self._reduce()

    def _collect(self, p: Tensor, loose: dict[Tensor, None]) -> None:
        """Count a gradient of the first backward pass in; reduce what is a whole bucket."""
        if p in loose or p in self._bucket_of:
            raise RuntimeError(_IN_PARTS)
        full = bool(loose) and sum(map(Tensor.numel, loose)) + p.numel() > self.bucket
        if full and self._agrees and self._same_everywhere(loose):
            self._add_buckets(loose)
            loose.clear()
            self._reduce()
        loose[p] = None

    def _bucket_the_rest(self, loose: dict[Tensor, None]) -> None:
        """End the first backward pass: put into buckets what is in none, as rank 0 has it."""
        if self._agrees:
            self._same_everywhere([])  # meets the ranks that still collect
        left = [p for p in self._number if p not in self._bucket_of and p not in loose]
        numbers = torch.tensor([self._number[p] for p in [*loose, *left]])
        numbers = numbers.to(self.engine.device)
        dist.broadcast(numbers, 0)
        parameters = list(self._number)
        self._add_buckets(parameters[number] for number in numbers.tolist())
        self._loose = None

    def _same_everywhere(self, parameters: Iterable[Tensor]) -> bool:
        """Return whether all ranks have come to the same parameters; a collective."""
        numbers = [self._number[p] for p in parameters]
        digest = int(hashlib.sha256(repr(numbers).encode()).hexdigest()[:15], 16)
        bounds = torch.tensor([digest, -digest], device=self.engine.device)
        dist.all_reduce(bounds, dist.ReduceOp.MAX)
        largest, least = bounds.tolist()
        self._agrees = largest == -least
        return self._agrees

    def _add_buckets(self, order: Iterable[Tensor]) -> None:
        for parameters in cut(order, self.bucket):
            bucket = _bucket(parameters, self._places)
            self._buckets.append(bucket)
            self._bucket_of.update(dict.fromkeys(bucket.parameters, bucket))

    def _reduce(self) -> None:
        """Gather the next bucket's gradients and start their sums over the ranks."""
        bucket = self._buckets[self._next]
        self._next += 1
        if self._together is None:
            self._send(bucket, self._rows[0], [p.grad for p in bucket.parameters])
            for p in bucket.parameters:
                p.grad = None
            return
        unreached = [None] * len(self._rows)
        each = [self._together.pop(p, unreached) for p in bucket.parameters]
        for row, gradients in zip(self._rows, zip(*each, strict=True), strict=True):
            self._send(bucket, row, gradients)

    def _send(self, bucket: _Bucket, row: Row, gradients: Sequence[Tensor | None]) -> None:
        if self.ranks == 1 and row.fresh:
            _move(gradients, _targets(bucket, row))
            return
        device = bucket.parameters[0].device
        buffer = torch.empty(bucket.numel, dtype=self.dtype, device=device)
        _move(gradients, buffer.split_with_sizes([p.numel() for p in bucket.parameters]))
        self._receive()
        # DeepSpeed's own, which `deepspeed.comms_logger` counts.
        work = self._comm.all_reduce(buffer, async_op=True) if self.ranks > 1 else None
        self._sent = _Sent(work, bucket, buffer, row)
        if work is None or not self.overlaps:
            self._receive()

    def _receive(self) -> None:
        """Add this rank's part of the bucket that was sent last to its shard."""
        if self._sent is None:
            return
        work, bucket, buffer, row = self._sent
        self._sent = None
        if work is not None:
            work.wait()
        targets = _targets(bucket, row)
        sources = [buffer[start : start + place.piece.numel] for start, place in bucket.parts]
        if not targets:
            return
        if row.fresh:
            torch._foreach_copy_(targets, sources)
        elif self.dtype is torch.float32:
            torch._foreach_add_(targets, sources)
        else:  # of two dtypes, each pair would be a launch of its own
            wide = [torch.empty_like(target) for target in targets]
            torch._foreach_copy_(wide, sources)
            torch._foreach_add_(targets, wide)


_IN_PARTS = "a parameter's gradient came in several parts; use checkpoints with use_reentrant=False"


def _targets(bucket: _Bucket, row: Row) -> list[Tensor]:
    """Return where this rank's parts of a bucket go."""
    return [
        row.shard[group][piece.offset : piece.offset + piece.numel]
        for _, (group, piece) in bucket.parts
    ]


def _move(gradients: Sequence[Tensor | None], targets: Sequence[Tensor]) -> None:
    """Write gradients, or zeros, into flat tensors."""
    here, there = [], []
    for gradient, target in zip(gradients, targets, strict=True):
        if gradient is None:
            target.zero_()
        else:
            here.append(target.view_as(gradient))
            there.append(gradient)
    if there:
        torch._foreach_copy_(here, there)


def _places(engine: Engine) -> dict[Tensor, _Place]:
    """Return where this rank's part of each parameter is; others have none."""
    named = {name: p for p, name in engine.param_names.items()}
    return {
        named[piece.name]: _Place(buffer.group, piece)
        for buffer, _ in buffers_of(engine)
        for piece in buffer.pieces
    }


def _bucket(parameters: list[Tensor], places: dict[Tensor, _Place]) -> _Bucket:
    """Return the bucket of these parameters."""
    bucket = _Bucket(parameters, [], 0)
    for p in parameters:
        if p in places:
            bucket.parts.append(_Part(bucket.numel + places[p].piece.start, places[p]))
        bucket.numel += p.numel()
    return bucket
