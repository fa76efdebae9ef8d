"""`fair_backward` in plain loops, DDP and FSDP2, against one process in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ranks import run_ranks
from three_outputs import assert_gradients, batch, expected_gradients, network, three_losses
from torch import Tensor, nn

from fairhuman import fair_backward, solve_mpd
from fairhuman.fairness.mpd import Status


@pytest.mark.parametrize("stacked", [False, True])
def test_it_writes_the_fair_direction(stacked: bool) -> None:
    model = network()
    losses = three_losses(model, *batch())
    solution = fair_backward(torch.stack(losses) if stacked else losses, model.parameters())
    assert int(solution.status) == Status.OK
    assert_gradients([p.grad for p in model.parameters()], expected_gradients())  # type: ignore[misc]


def test_without_a_ball_the_norm_is_the_solutions() -> None:
    model = network()
    solution = fair_backward(
        three_losses(model, *batch()), model.parameters(), normalize="none", max_norm=None
    )
    assert_gradients([p.grad for p in model.parameters()], expected_gradients(None))  # type: ignore[misc]
    norm = torch.cat([p.grad.reshape(-1) for p in model.parameters()]).norm()  # type: ignore[union-attr]
    assert float(norm) == pytest.approx(float(solution.norm), rel=1e-5)


def test_an_old_gradient_is_replaced_and_an_unreached_parameter_gets_zeros() -> None:
    model = network()
    spare = nn.Parameter(torch.ones(4))
    frozen = nn.Parameter(torch.ones(4), requires_grad=False)
    for p in model.parameters():
        p.grad = torch.full_like(p, 9.0)
    fair_backward(three_losses(model, *batch()), [*model.parameters(), spare, frozen])
    assert_gradients([p.grad for p in model.parameters()], expected_gradients())  # type: ignore[misc]
    assert torch.equal(spare.grad, torch.zeros(4))  # type: ignore[arg-type]
    assert frozen.grad is None


def test_a_constant_loss_is_an_absent_objective() -> None:
    model = network()
    losses = [*three_losses(model, *batch()), torch.zeros(())]
    solution = fair_backward(losses, model.parameters())
    assert int(solution.status) == Status.ABSENT
    assert solution.weights[3] == 0
    assert_gradients([p.grad for p in model.parameters()], expected_gradients())  # type: ignore[misc]


class Kept(torch.autograd.Function):
    """<x, y> whose gradient in x is y itself, not a copy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(y)
        return x @ y

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        (y,) = ctx.saved_tensors
        return y, None


def test_gradients_that_are_one_tensor_or_another_s_are_not_written_over() -> None:
    one, two, three = (nn.Parameter(torch.randn(5)) for _ in range(3))
    kept, before = torch.arange(5.0), torch.arange(5.0)
    losses = [
        ((one + two) * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])).sum(),  # of both the same gradient
        one.sum() + Kept.apply(three, kept),  # an expanded one, and a tensor that is not ours
    ]
    solution = fair_backward(losses, [one, two, three], normalize="none", max_norm=None)
    w = solution.weights.float()
    first = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    torch.testing.assert_close(one.grad, w[0] * first + w[1])
    torch.testing.assert_close(two.grad, w[0] * first)
    torch.testing.assert_close(three.grad, w[1] * before)
    assert torch.equal(kept, before)


def test_heads_that_only_their_own_loss_reaches_count_in_its_gradient_alone() -> None:
    trunk, heads = nn.Linear(6, 4), nn.ModuleList(nn.Linear(4, 1) for _ in range(3))
    spare = nn.Parameter(torch.ones(3))
    parameters = [*heads.parameters(), *trunk.parameters(), spare]
    features = torch.tanh(trunk(torch.randn(8, 6)))
    losses = [head(features).square().mean() for head in heads]
    rows = torch.stack(
        [
            torch.cat(
                [
                    (torch.zeros_like(p) if g is None else g).double().reshape(-1)
                    for p, g in zip(
                        parameters,
                        torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True),
                        strict=True,
                    )
                ]
            )
            for loss in losses
        ]
    )
    expected = solve_mpd(rows @ rows.T).weights
    solution = fair_backward(losses, parameters, normalize="none", max_norm=None)
    torch.testing.assert_close(solution.weights, expected, rtol=1e-6, atol=0)
    found = torch.cat([p.grad.reshape(-1) for p in parameters if p.grad is not None])
    torch.testing.assert_close(found.double(), expected @ rows, rtol=1e-5, atol=1e-7)


def test_a_gradient_that_is_not_finite_gives_no_direction() -> None:
    model = network()
    losses = three_losses(model, *batch())
    solution = fair_backward([losses[0], losses[1] * float("inf")], model.parameters())
    assert int(solution.status) == Status.NONFINITE
    for p in model.parameters():
        assert torch.equal(p.grad, torch.zeros_like(p))  # type: ignore[arg-type]


@pytest.mark.parametrize("anchor", [0, 2])
def test_it_keeps_the_cosine_to_one_loss(anchor: int) -> None:
    """The closed form by explicit gradients: along g / n and e, d is keep and sqrt(1 - keep^2)."""
    model, keep = network(torch.float64), 0.95
    parameters = list(model.parameters())
    losses = three_losses(model, *batch(torch.float64))
    rows = torch.stack(
        [
            torch.cat(
                [g.reshape(-1) for g in torch.autograd.grad(loss, parameters, retain_graph=True)]
            )
            for loss in losses
        ]
    )
    fair = solve_mpd(rows @ rows.T)
    solution = fair_backward(losses, parameters, max_norm=0.5, keep=keep, anchor=anchor)
    assert int(solution.status) == Status.KEPT
    g = rows[anchor] / rows[anchor].norm()
    d0 = fair.weights @ rows
    e = d0 - (d0 @ g) * g
    expected = 0.5 * (keep * g + (1 - keep**2) ** 0.5 * e / e.norm())
    found = torch.cat([p.grad.reshape(-1) for p in parameters if p.grad is not None])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert float(solution.cosine) == pytest.approx(keep, abs=1e-15)


def test_parameters_of_several_dtypes_are_one_direction() -> None:
    model = network(torch.float64)
    model[2].float()

    def forward(x: Tensor) -> Tensor:
        return model[2](model[1](model[0](x)).float()).double()

    fair_backward(three_losses(forward, *batch(torch.float64)), model.parameters())
    assert_gradients([p.grad for p in model.parameters()], expected_gradients())  # type: ignore[misc]


@pytest.mark.parametrize(
    ("losses", "parameters", "message"),
    [
        ([], [torch.ones(2, requires_grad=True)], "at least one scalar"),
        ([torch.ones(2)], [torch.ones(2, requires_grad=True)], r"losses\[0\] must be a scalar"),
        ([torch.ones(())], [torch.ones(2)], "at least one that requires a gradient"),
    ],
)
def test_wrong_input_is_refused(
    losses: list[Tensor], parameters: list[Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fair_backward(losses, parameters)


def in_ranks(kind: str) -> tuple[list[Tensor], Tensor]:
    """Two steps on this rank's half of the batch; returns the whole gradients, and the weights."""
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    rank, world = dist.get_rank(), dist.get_world_size()
    model: nn.Module = network()
    if kind == "ddp":
        model = nn.parallel.DistributedDataParallel(model)
    elif kind == "fsdp2":
        assert isinstance(model, nn.Sequential)
        for layer in (model[0], model[2]):
            fully_shard(layer)
        fully_shard(model)
    x, y = (t.chunk(world)[rank] for t in batch())
    for _ in range(2):  # the second step meets what the first has left behind
        solution = fair_backward(three_losses(model, x, y), model.parameters())
    grads = [p.grad for p in model.parameters()]
    whole = [g.full_tensor() if isinstance(g, DTensor) else g for g in grads]
    return [g.clone() for g in whole if g is not None], solution.weights


def every_kind() -> dict[str, tuple[list[Tensor], Tensor]]:
    return {kind: in_ranks(kind) for kind in ("plain", "ddp", "fsdp2")}


def list_after_forward() -> list[str]:
    """Shard the root alone, and list its parameters before, and after, the forward pass."""
    from torch.distributed.fsdp import fully_shard

    model = network()
    fully_shard(model)
    before = list(model.parameters())
    x, y = batch()
    said = []
    for after in (False, True):
        losses = three_losses(model, x, y)
        try:
            fair_backward(losses, model.parameters() if after else before)
            said.append("taken")
        except ValueError as error:
            said.append(str(error))
    return said


def test_parameters_that_fsdp_has_gathered_are_refused() -> None:
    for said in run_ranks(list_after_forward, 2):
        assert said[0] == "taken"
        assert "list them before it" in said[1]


def test_ranks_agree_with_one_process_on_the_whole_batch() -> None:
    first, second = run_ranks(every_kind, 2)
    for kind, (gradients, weights) in first.items():
        assert_gradients(gradients, expected_gradients())
        assert torch.equal(weights, second[kind][1])
        assert all(map(torch.equal, gradients, second[kind][0]))
