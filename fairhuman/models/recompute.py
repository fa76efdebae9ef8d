"""Gradient checkpointing: blocks whose activations every backward pass recomputes.

Where a step has a gradient for each of K objectives, a block is recomputed once for all of them:
`share_recomputation`. A step then costs what 1 + 1 + 2 K forward passes cost, and not 1 + 3 K.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

Take: TypeAlias = Callable[[Tensor, Sequence[Tensor | None]], None]
"""Takes a parameter's K gradients, None where an objective does not reach it."""


def recompute_blocks(model: Any) -> None:
    """Have a model of diffusers recompute its blocks' activations in every backward pass.

    Without what diffusers' own way adds on the host, and without another result: the state of
    random numbers, which only dropout needs, and the comparison of shapes with those of before.
    """
    model.enable_gradient_checkpointing(partial(_checkpointed, drops=_drops(model)))


def share_recomputation(model: nn.Module) -> SharedBlocks | None:
    """Have the blocks of `recompute_blocks` recomputed once for all objectives of a backward pass.

    None where nothing is to be gained, without a recomputed block, and where it cannot be had: with
    dropout, and with blocks of others, such as a text encoder's.
    """
    parts: list[Any] = [p for p in model.modules() if getattr(p, "gradient_checkpointing", False)]
    ways = [part._gradient_checkpointing_func for part in parts]
    for way in ways:
        if isinstance(way, SharedBlocks):
            return way
    if not parts or _drops(model) or not all(_is_ours(way) for way in ways):
        return None
    shared = SharedBlocks()
    for part in parts:
        part._gradient_checkpointing_func = shared
    return shared


class SharedBlocks:
    """The blocks of a model, each of which is recomputed once for K gradients."""

    def __init__(self) -> None:
        self._parameters: set[Tensor] = set()
        """Those of the blocks."""
        self._outputs: list[Tensor] = []
        """What has a graph of what the model returned last."""
        self._take: Take | None = None
        self.keeps_graph = False

    def __call__(self, module: nn.Module, *inputs: Any) -> Any:
        """Compute a block, of whose activations only the inputs and outputs are kept."""
        trained = [p for p in module.parameters() if p.requires_grad]
        block = _Block(module, inputs, trained)
        if not (block.differentiable or trained):
            return module(*inputs)
        self._parameters.update(trained)
        differentiable = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
        return _Run.apply(self, block, *differentiable, *trained)

    def call(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Call the model that has the blocks, for a `backward` of losses of what it returns."""
        found = model(*args, **kwargs)
        leaves = tree_leaves(found)
        self._outputs = [x for x in leaves if isinstance(x, Tensor) and x.requires_grad]
        return found

    def backward(
        self,
        losses: Sequence[Tensor],
        trained: Sequence[Tensor],
        take: Take,
        keep_graph: bool = False,
    ) -> None:
        """Compute the gradients of K losses side by side, in one backward pass.

        Args:
            losses: K scalars, which depend on the parameters through what `call` returned last.
            trained: the parameters.
            take: called once for each parameter that a loss reaches, as soon as its gradients are
                there.
            keep_graph: whether another backward pass of this graph will follow.
        """
        outputs = self._outputs
        cotangents = [
            torch.autograd.grad(
                loss, outputs, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            for loss in losses
        ]

        def backward(*parts: Tensor) -> Tensor:
            torch.autograd.grad(outputs, trained, parts, keep_graph, allow_unused=True)
            return parts[0]  # vmap wants something

        self._take, self.keeps_graph = take, keep_graph
        try:
            with ExitStack() as hooks:
                for p in trained:
                    if p not in self._parameters:
                        hooks.callback(p.register_hook(partial(_Taken.apply, take, p)).remove)
                torch.vmap(backward)(*map(torch.stack, zip(*cotangents, strict=True)))
        finally:
            self._take = None
            self.forget()

    def forget(self) -> None:
        """Drop what the model returned last, which holds its graph."""
        self._outputs = []

    def take(
        self, parameters: Sequence[Tensor], gradients: Sequence[Sequence[Tensor | None]]
    ) -> None:
        """Hand a block's gradients over, [parameter][objective]."""
        assert self._take is not None, "cotangents side by side outside of `backward`"
        for p, of_p in zip(parameters, gradients, strict=True):
            if any(gradient is not None for gradient in of_p):
                self._take(p, of_p)


class _Block:
    """A block's graph, whose saved tensors are there only while gradients are computed."""

    def __init__(
        self, module: nn.Module, inputs: Sequence[Any], trained: list[nn.Parameter]
    ) -> None:
        self.module = module
        self.trained = trained
        self.inputs = [_cut(x) if isinstance(x, Tensor) else x for x in inputs]
        self.differentiable = [x for x in self.inputs if isinstance(x, Tensor) and x.requires_grad]
        self._outputs: Sequence[Tensor | None] = ()
        self._count = 0
        # The graph's hooks hold this list and not the block: a ring through autograd's own
        # objects is nothing that Python's garbage collector can see.
        self._saved: list[Tensor] = []

    def run(self) -> Any:
        """Compute the block; return its output or outputs, without a graph."""
        saved, numbers = self._saved, iter(range(1 << 62))
        with torch.enable_grad(), saved_tensors_hooks(lambda _: next(numbers), saved.__getitem__):
            found = self.module(*self.inputs)
        self._count = next(numbers)
        single = isinstance(found, Tensor)
        self._outputs = [found] if single else list(found)
        if single:
            return found.detach()
        # SD 3's last block returns None in place of the captions' states.
        return tuple(None if x is None else x.detach() for x in found)

    def gradients(self, cotangents: Sequence[Sequence[Tensor]]) -> list[tuple[Tensor | None, ...]]:
        """Return each row's: of the differentiable inputs, then of the trained parameters."""
        outputs = [x for x in self._outputs if x is not None]
        with self._recomputed():
            return [
                torch.autograd.grad(
                    outputs,
                    [*self.differentiable, *self.trained],
                    [x for x in row if x is not None],
                    retain_graph=True,
                    allow_unused=True,
                )
                for row in cotangents
            ]

    def free(self) -> None:
        """Drop all that the block holds, as no other backward pass will follow."""
        self.inputs, self.differentiable, self._outputs = [], [], ()

    @contextmanager
    def _recomputed(self) -> Iterator[None]:
        def keep(tensor: Tensor) -> None:
            self._saved.append(tensor.detach())
            if len(self._saved) == self._count:
                raise _Enough

        try:
            if self._count:
                with torch.enable_grad(), saved_tensors_hooks(keep, _never):
                    self.module(*self.inputs)
        except _Enough:  # what follows computes only the output
            pass
        try:
            yield
        finally:
            self._saved.clear()


class _Enough(Exception):  # noqa: N818
    """All that a block saves is there."""


class _Run(torch.autograd.Function):
    """A block's output; its backward pass recomputes the block."""

    @staticmethod
    def forward(ctx: Any, shared: SharedBlocks, block: _Block, *inputs: Tensor) -> Any:
        ctx.shared, ctx.block, ctx.count = shared, block, len(inputs)
        return block.run()

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        found = _Gradients.apply(ctx.shared, ctx.block, *cotangents)
        return None, None, *found, *[None] * (ctx.count - len(found))


class _Gradients(torch.autograd.Function):
    """A block's gradients for one row of cotangents, or for K side by side."""

    @staticmethod
    def forward(shared: SharedBlocks, block: _Block, *cotangents: Tensor) -> Any:
        (found,) = block.gradients([cotangents])
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, shared: SharedBlocks, block: _Block, *cotangents: Tensor
    ) -> Any:
        dims = in_dims[2:]
        rows = [
            [
                x if dim is None else x.select(dim, k)
                for x, dim in zip(cotangents, dims, strict=True)
            ]
            for k in range(info.batch_size)
        ]
        found = block.gradients(rows)
        differentiable = block.differentiable
        count = len(differentiable)
        shared.take(block.trained, list(zip(*(row[count:] for row in found), strict=True)))
        if not shared.keeps_graph:
            block.free()
        stacked = tuple(
            torch.stack([x.new_zeros(x.shape) if g is None else g for g in of_x])
            for x, *of_x in zip(differentiable, *(row[:count] for row in found), strict=True)
        )
        return stacked, (0,) * count


class _Taken(torch.autograd.Function):
    """Hands the gradients of a parameter outside of the blocks over."""

    @staticmethod
    def forward(take: Take, p: Tensor, gradient: Tensor) -> Tensor:
        raise AssertionError("only where gradients are computed side by side")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: Any, take: Take, p: Tensor, gradient: Tensor) -> Any:
        take(p, gradient.movedim(in_dims[2], 0).unbind())
        # In its place, a zero that takes no memory.
        return gradient.new_zeros(()).expand(p.shape), None


def _checkpointed(module: nn.Module, *inputs: Any, drops: bool) -> Any:
    return checkpoint(
        module.__call__,
        *inputs,
        use_reentrant=False,
        preserve_rng_state=drops,
        determinism_check="none",
    )


def _is_ours(way: Any) -> bool:
    return isinstance(way, partial) and way.func is _checkpointed


def _drops(model: nn.Module) -> bool:
    return any(isinstance(part, nn.Dropout) and part.p > 0 for part in model.modules())


def _cut(x: Tensor) -> Tensor:
    """Return an input that the block's graph begins with."""
    # Not a leaf, by which FlopCounterMode's hooks would fail in autograd.grad.
    return x.detach().requires_grad_().view_as(x) if x.requires_grad else x


def _never(_: Any) -> Tensor:
    raise AssertionError("no backward pass of what was recomputed")
