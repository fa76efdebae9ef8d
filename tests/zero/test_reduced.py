"""Gradients that are reduced here and not by DeepSpeed: ranks that differ, small buckets, errors.

That they are those of one process is tested with all others, in `test_zero.py`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ranks import run_ranks
from small_net import Case
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

WEIGHTS = (0.5, 2.0)
MICRO_BATCHES = 2
PLACES: dict[str, tuple[int, dict[str, Any]]] = {
    "stage 1": (1, {}),
    "stage 2": (2, {}),
    "one after the other": (2, {"overlap_comm": False}),
    "round robin": (2, {"round_robin_gradients": True}),
}


class Branches(nn.Module):
    """Two branches, in the order that the caller says; a parameter that nothing reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(7, 5)
        self.idle = nn.Parameter(torch.ones(11))
        self.right = nn.Linear(7, 5)
        self.single = nn.Linear(7, 3)

    def forward(self, x: Tensor, turned: bool = False) -> tuple[Tensor, Tensor]:
        if turned:
            right = self.right(x)
            both = torch.tanh(self.left(x)) * right
        else:
            left = torch.tanh(self.left(x))
            both = self.right(x) * left
        return both, self.single(x)


def branches() -> Branches:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Branches()


def inputs(step: int, rank: int) -> Tensor:
    rng = torch.Generator().manual_seed(100 * step + rank)
    return torch.randn(MICRO_BATCHES, 4, 7, generator=rng)


def losses(outputs: tuple[Tensor, Tensor], rank: int) -> list[Tensor]:
    """The second reaches `single` on rank 1 alone."""
    both, single = outputs
    second = both[:, :2].sin().mean()
    return [both.square().mean(), second + single.square().mean() if rank == 1 else second]


def train_on_ranks(bucket: int, turned_from: int) -> dict[str, dict[str, Any]]:
    import torch.distributed as dist

    from fairhuman.zero import make_gradients
    from fairhuman.zero.engine import make_engine

    rank, results = dist.get_rank(), {}
    for name, (stage, zero) in PLACES.items():
        zero = zero | {"reduce_bucket_size": bucket}
        case = Case(stage, zero=zero, ranks=dist.get_world_size(), accumulation=MICRO_BATCHES)
        engine = make_engine(case.config(), branches())
        gradients = make_gradients(engine)
        grams = []
        for step in range(3):
            gradients.start(2, MICRO_BATCHES)
            for x in inputs(step, rank):
                turned = rank == 0 and step >= turned_from
                gradients.backward(losses(gradients.model(x, turned), rank))
            grams.append(gradients.gram())
            gradients.step(torch.tensor(WEIGHTS, dtype=torch.float64))
        results[name] = {
            "grams": grams,
            "parameters": [p.detach().clone() for p in engine.module.parameters()],
        }
        engine.destroy()
    return results


def train_alone(ranks: int) -> tuple[list[Tensor], list[Tensor]]:
    model = branches().double()
    parameters, grams = list(model.parameters()), []
    for step in range(3):
        rows = torch.zeros(2, sum(p.numel() for p in parameters), dtype=torch.float64)
        for rank in range(ranks):
            for x in inputs(step, rank).double():
                for row, loss in zip(rows, losses(model(x), rank), strict=True):
                    grads = torch.autograd.grad(
                        loss, parameters, retain_graph=True, allow_unused=True
                    )
                    row += torch.cat(
                        [
                            (torch.zeros_like(p) if g is None else g).reshape(-1)
                            for p, g in zip(parameters, grads, strict=True)
                        ]
                    ) / (ranks * MICRO_BATCHES)
        grams.append(rows @ rows.T)
        with torch.no_grad():
            d = torch.tensor(WEIGHTS, dtype=torch.float64) @ rows
            for p, part in zip(parameters, d.split([p.numel() for p in parameters]), strict=True):
                p.sub_(part.view_as(p))  # the learning rate of `Case` is 1
    return [p.detach() for p in parameters], grams


@pytest.mark.parametrize("turned_from", [0, 1], ids=["always", "after the first step"])
@pytest.mark.parametrize(("ranks", "bucket"), [(1, 40), (2, 1), (2, 40), (3, 2**26)])
def test_ranks_may_reach_other_parameters_in_another_order(
    ranks: int, bucket: int, turned_from: int
) -> None:
    parameters, grams = train_alone(ranks)
    for of_place in run_ranks(train_on_ranks, ranks, bucket, turned_from):
        for name in PLACES:
            for gram, right in zip(of_place[name]["grams"], grams, strict=True):
                torch.testing.assert_close(gram, right, rtol=1e-5, atol=0)
            for p, right in zip(of_place[name]["parameters"], parameters, strict=True):
                torch.testing.assert_close(p.double(), right, rtol=0, atol=1e-5)


class Twice(nn.Module):
    """A weight whose gradient reentrant checkpoints bring in two parts."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(4))

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = checkpoint(lambda y: torch.tanh(y @ self.weight), x, use_reentrant=True)
        return x


def other_ways() -> dict[str, Any]:
    from fairhuman.training.balancers.base import ExactBalancer
    from fairhuman.training.step import make_solver
    from fairhuman.zero import make_gradients
    from fairhuman.zero.engine import make_engine

    found: dict[str, Any] = {}

    engine = make_engine(Case(2, ranks=1).config(), Twice())
    gradients = make_gradients(engine)
    gradients.start(1, 1)
    try:
        gradients.backward([gradients.model(torch.ones(2, 4, requires_grad=True)).sum()])
    except RuntimeError as error:
        found["twice"] = str(error)
    engine.destroy()

    engine = make_engine(Case(2, ranks=1).config(), branches())
    gradients = make_gradients(engine)
    gradients.start(1, 1)
    gradients.backward([gradients.model(inputs(0, 0)[0])[0].sum()])
    before = gradients.gram()
    engine.module(inputs(1, 0)[0])[0].sum().backward()
    left: nn.Module = engine.module.left  # type: ignore[assignment]
    found["other"] = (before, gradients.gram(), left.weight.grad is not None)
    gradients.start(1, 1)
    found["forgotten"] = left.weight.grad is None
    engine.destroy()

    config = Case(2, ranks=1, accumulation=1, normalize="none").config()
    engine = make_engine(config, branches())
    balancer = ExactBalancer(engine, make_solver(config))
    start = [p.detach().clone() for p in engine.module.parameters()]
    balancer.start([True, True], 1)
    balancer.backward(torch.stack(losses(balancer.model(inputs(0, 0)[0]), 0)) * 1e-30)
    found["small"] = balancer.step()
    pairs = zip(engine.module.parameters(), start, strict=True)
    found["moved"] = any(not torch.equal(p, q) for p, q in pairs)
    engine.destroy()
    return found


@pytest.fixture(scope="module")
def others() -> dict[str, Any]:
    result: dict[str, Any] = run_ranks(other_ways, 1)[0]
    return result


def test_a_gradient_that_comes_in_parts_is_refused(others: dict[str, Any]) -> None:
    assert "in several parts" in others["twice"]


def test_a_backward_pass_of_somebody_else_is_left_alone(others: dict[str, Any]) -> None:
    before, after, kept = others["other"]
    assert torch.equal(before, after)
    assert kept
    assert others["forgotten"]  # else the next step's gradient would be added to it


def test_a_step_with_weights_beyond_float32_is_skipped(others: dict[str, Any]) -> None:
    """Gradients of 1e-30 have weights of 1e40 where they are not normalized."""
    balance = others["small"]
    assert balance.skipped
    assert balance.weights == [0.0, 0.0]
    assert all(0.0 < norm < 1e-29 for norm in balance.grad_norms)
    assert not others["moved"]
