"""`fair_backward` by every rule, in one process and in ranks, against float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from ranks import run_ranks
from three_outputs import batch, network, three_losses
from torch import Tensor, nn

from fairhuman import DWA, InverseLoss, Uncertainty, fair_backward
from fairhuman.fairness.losses import LossRule
from fairhuman.fairness.mpd import Status
from fairhuman.fairness.rules import RULES, Rule
from fairhuman.fairness.solve import Solver

FOLLOWING: dict[str, Callable[[], LossRule]] = {
    "inverse_loss": lambda: InverseLoss(3),
    "dwa": lambda: DWA(3, window=1),
    "uncertainty": lambda: Uncertainty(3),
}


def rows_and_losses() -> tuple[Tensor, Tensor]:
    """The three gradients and losses of the whole batch, by one process in float64."""
    model = network(torch.float64)
    losses = three_losses(model, *batch(torch.float64))
    rows = [
        torch.cat(
            [
                g.reshape(-1)
                for g in torch.autograd.grad(loss, [*model.parameters()], retain_graph=True)
            ]
        )
        for loss in losses
    ]
    return torch.stack(rows), torch.stack(losses).detach()


def written(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.reshape(-1).double() for p in model.parameters()])  # type: ignore[union-attr]


def close(found: Tensor, right: Tensor, rel: float = 1e-5) -> None:
    assert float((found - right).norm() / right.norm()) < rel


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("keep", [0.0, 0.95])
def test_it_writes_the_rules_direction_as_the_trainer_solves_for_it(
    rule: Rule, keep: float
) -> None:
    model = network()
    solution = fair_backward(
        three_losses(model, *batch()), model.parameters(), rule=rule, keep=keep, anchor=1
    )
    rows, losses = rows_and_losses()
    right = Solver(rule=rule, keep=keep, anchor=1)(rows @ rows.T, losses=losses)
    close(solution.weights, right.weights)
    close(written(model), right.scale * right.weights @ rows)
    assert float(written(model).norm()) == pytest.approx(1.0, rel=1e-5)
    if keep:
        cosine = written(model) @ rows[1] / rows[1].norm()
        assert float(cosine) >= keep - 1e-5


@pytest.mark.parametrize("kind", FOLLOWING)
def test_a_rule_that_follows_the_losses_weighs_one_backward_pass(kind: str) -> None:
    model, rule, twin = network(), FOLLOWING[kind](), FOLLOWING[kind]()
    rows, losses = rows_and_losses()
    for step in range(4):
        shift = 1.0 + 0.3 * step * torch.arange(3)
        scaled = [a * b for a, b in zip(three_losses(model, *batch()), shift, strict=True)]
        solution = fair_backward(
            scaled, model.parameters(), normalize="none", max_norm=None, rule=rule
        )
        weights = twin.weights([True] * 3)
        close(solution.weights, weights)
        close(written(model), (weights * shift) @ rows)
        assert float(solution.norm) == pytest.approx(float(written(model).norm()), rel=1e-5)
        twin.learn((losses * shift).tolist())
    assert len(set(solution.weights.tolist())) == 3


@pytest.mark.parametrize("kind", FOLLOWING)
def test_what_is_absent_or_not_finite_teaches_a_rule_nothing(kind: str) -> None:
    model, rule = network(), FOLLOWING[kind]()
    for _ in range(2):
        fair_backward(three_losses(model, *batch()), model.parameters(), rule=rule)
    before = rule.state_dict()
    losses = three_losses(model, *batch())
    solution = fair_backward(
        [losses[0], losses[1] * math.nan, losses[2]], model.parameters(), rule=rule
    )
    assert int(solution.status) == Status.NONFINITE
    for key, value in rule.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)
    losses = three_losses(model, *batch())
    solution = fair_backward([losses[0], torch.zeros(()), losses[2]], model.parameters(), rule=rule)
    assert int(solution.status) == Status.ABSENT
    assert float(solution.weights[1]) == 0.0
    assert float(written(model).norm()) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "dwa"}, r"such as fairhuman.DWA\(3\); not 'dwa'"),
        ({"rule": "mgda", "alpha": 3.0}, "'mgda' has no alpha"),
        ({"rule": InverseLoss(2)}, "is of 2 losses, and losses holds 3"),
        ({"rule": InverseLoss(3), "keep": 0.5}, "cannot bound"),
        ({"rule": InverseLoss(3), "alpha": 1.0}, "has no alpha"),
        ({"rule": InverseLoss(3), "max_norm": None}, "give max_norm"),
    ],
)
def test_settings_that_a_rule_does_not_have_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    model = network()
    with pytest.raises(ValueError, match=message):
        fair_backward(three_losses(model, *batch()), model.parameters(), **settings)


def in_ranks() -> dict[str, tuple[Tensor, Tensor]]:
    """By every rule, on this rank's half of the batch; two steps, plain and under FSDP2."""
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    rank, world = dist.get_rank(), dist.get_world_size()
    x, y = (t.chunk(world)[rank] for t in batch())
    found = {}
    for sharded in (False, True):
        for name in (*RULES, *FOLLOWING):
            model = network()
            if sharded:
                fully_shard(model)
            rule: Any = FOLLOWING[name]() if name in FOLLOWING else name
            parameters = list(model.parameters())
            for _ in range(2):
                solution = fair_backward(three_losses(model, x, y), parameters, rule=rule)
            grads = [p.grad for p in parameters]
            whole = [g.full_tensor() if isinstance(g, DTensor) else g for g in grads]
            flat = torch.cat([g.reshape(-1).double() for g in whole if g is not None])
            found[f"{name} {sharded}"] = (flat, solution.weights)
    return found


def test_ranks_agree_with_one_process_on_the_whole_batch() -> None:
    first, second = run_ranks(in_ranks, 2)
    for name, (gradient, weights) in first.items():
        assert torch.equal(gradient, second[name][0]), name
        assert torch.equal(weights, second[name][1]), name
        model, kind = network(), name.split()[0]
        rule: Any = FOLLOWING[kind]() if kind in FOLLOWING else kind
        for _ in range(2):
            solution = fair_backward(three_losses(model, *batch()), model.parameters(), rule=rule)
        close(weights, solution.weights)
        close(gradient, written(model))


@pytest.mark.parametrize("rule", ["log_mpd", "mgda", DWA(3)])
def test_a_grad_scaler_leaves_no_trace_in_the_weights(rule: Any) -> None:
    plain, scaled = network(), network()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    right = fair_backward(three_losses(plain, *batch()), plain.parameters(), rule=rule)
    found = fair_backward(
        three_losses(scaled, *batch()), scaled.parameters(), rule=rule, scaler=scaler
    )
    close(found.weights, right.weights)
    close(written(scaled) / 2**10, written(plain))
