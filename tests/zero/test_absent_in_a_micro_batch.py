"""An objective that a micro-batch does not hold, on any rank, costs no backward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ranks import run_ranks
from small_net import Case
from torch import Tensor, nn

OPTIMIZER = {"offload_optimizer": {"device": "cpu", "pin_memory": False}}
PLACES = {
    "stage 1, bf16": Case(1, precision="bf16"),
    "stage 2": Case(2),
    "stage 2, offloaded": Case(2, zero=OPTIMIZER),
    "stage 3": Case(3),
    "stage 3, offloaded": Case(3, zero=OPTIMIZER),
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(7, 5)
        self.outer = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(x)))


def step(gradients: Any, left_out: bool, passes: list[int]) -> Tensor:
    """Accumulate two micro-batches, of which the first holds the second objective not."""
    import torch.distributed as dist

    dtype = next(gradients.engine.module.parameters()).dtype
    rng = torch.Generator().manual_seed(dist.get_rank())
    gradients.start(3, 2)
    for micro_batch in range(2):
        out = gradients.model(torch.randn(4, 7, generator=rng).to(dtype)).float()
        out.register_hook(lambda _: passes.append(1))
        second = out[:, 1:].sin().mean()
        if micro_batch == 0:
            second = None if left_out else second * 0.0
        gradients.backward([out.square().mean(), second, out[:, 0].cos().mean()])
    gram: Tensor = gradients.gram()
    gradients.step(torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64))
    return gram


def both_ways() -> dict[Any, Any]:
    from fairhuman.zero import make_gradients
    from fairhuman.zero.engine import make_engine

    results = {}
    for name, case in PLACES.items():
        for left_out in (False, True):
            torch.manual_seed(1)
            engine = make_engine(case.config(), Net())
            gradients = make_gradients(engine)
            passes: list[int] = []
            grams = [step(gradients, left_out, passes) for _ in range(2)]
            results[name, left_out] = (grams, len(passes))
            engine.destroy()
    return results


@pytest.fixture(scope="module")
def results() -> list[dict[Any, Any]]:
    return run_ranks(both_ways, 2)


@pytest.mark.parametrize("name", PLACES)
def test_its_gradients_are_those_of_a_loss_of_zero(
    results: list[dict[Any, Any]], name: str
) -> None:
    for of_rank in results:
        (zero, passes), (absent, fewer) = of_rank[name, False], of_rank[name, True]
        assert (passes, fewer) == (12, 10)
        for a, b in zip(zero, absent, strict=True):
            assert torch.equal(a, b)
