"""`fair_backward` under torch's GradScaler: the same steps as without any scale, or none."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from ranks import run_ranks
from three_outputs import assert_gradients, batch, expected_gradients, network, three_losses
from torch import Tensor, nn

from fairhuman import fair_backward
from fairhuman.fairness.mpd import Status

SCALE = 2.0**16


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad for p in model.parameters()]  # type: ignore[misc]


def test_the_unscaled_gradient_is_the_direction_without_any_scale() -> None:
    model, scaler = network(), torch.amp.GradScaler("cpu")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    before = [p.detach().clone() for p in model.parameters()]
    solution = fair_backward(three_losses(model, *batch()), model.parameters(), scaler=scaler)
    assert_gradients([g / SCALE for g in gradients(model)], expected_gradients())
    other = network()
    plain = fair_backward(three_losses(other, *batch()), other.parameters())
    torch.testing.assert_close(solution.weights, plain.weights, rtol=1e-5, atol=0)
    torch.testing.assert_close(solution.norm, plain.norm, rtol=1e-5, atol=0)
    scaler.step(optimizer)
    scaler.update()
    moved = [(a - p) / 0.5 for a, p in zip(before, model.parameters(), strict=True)]
    assert_gradients([m.detach() for m in moved], expected_gradients())
    assert scaler.get_scale() == SCALE


@pytest.mark.parametrize("factor", [math.inf, math.nan, 1e37])  # 1e37: finite but for the scale
def test_what_is_not_finite_skips_every_optimizer_and_lowers_the_scale(factor: float) -> None:
    model, scaler = network(), torch.amp.GradScaler("cpu")
    halves = [model[0].parameters(), model[2].parameters()]
    optimizers = [torch.optim.SGD(half, lr=0.5, momentum=0.9) for half in halves]
    scales = []
    for step in range(3):
        before = [p.detach().clone() for p in model.parameters()]
        losses = three_losses(model, *batch())
        if step == 1:
            losses[1] = losses[1] * factor
        solution = fair_backward(losses, model.parameters(), scaler=scaler)
        for optimizer in optimizers:
            scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
        still = [torch.equal(a, p) for a, p in zip(before, model.parameters(), strict=True)]
        assert still == [step == 1] * 4
        assert bool(int(solution.status) & Status.NONFINITE) == (step == 1)
    assert scales == [SCALE, SCALE / 2, SCALE / 2]


def test_half_precision_keeps_gradients_that_would_vanish_without_the_scale() -> None:
    model, (x, y) = network(), batch()

    def losses() -> list[Tensor]:
        with torch.autocast("cpu", torch.float16):
            return [1e-7 * loss for loss in three_losses(model, x, y)]

    fair_backward(losses(), model.parameters(), scaler=torch.amp.GradScaler("cpu"))
    found = torch.cat([g.reshape(-1) for g in gradients(model)]).double()
    right = torch.cat(expected_gradients())
    assert float(torch.cosine_similarity(found, right, dim=0)) > 0.999
    fair_backward(losses(), model.parameters())
    found = torch.cat([g.reshape(-1) for g in gradients(model)]).double()
    assert not float(torch.cosine_similarity(found, right, dim=0)) > 0.999


def test_a_scaler_that_is_off_changes_nothing() -> None:
    model, off = network(), torch.amp.GradScaler("cpu", enabled=False)
    fair_backward(three_losses(model, *batch()), model.parameters(), scaler=off)
    assert_gradients(gradients(model), expected_gradients())


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("how", ["list", "stacked", "each", "divided"])
def test_losses_that_are_scaled_already_are_refused(
    how: str, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fairhuman.fairness.scaled._searches", 5)
    model, scaler = network(), torch.amp.GradScaler("cpu")
    losses = three_losses(model, *batch())
    scaled: Any = {
        "list": lambda: scaler.scale(losses),
        "stacked": lambda: scaler.scale(torch.stack(losses)),
        "each": lambda: [scaler.scale(loss) for loss in losses],
        "divided": lambda: [scaler.scale(loss) / 4 for loss in losses],
    }[how]()
    with pytest.raises(ValueError, match=r"losses\[0\] is scaled already: .*scaler=scaler"):
        fair_backward(scaled, model.parameters(), scaler=scaler if told else None)


def test_a_factor_of_the_user_s_own_is_no_scale() -> None:
    model, factor = network(), torch.tensor(2.0)
    losses = [loss * factor for loss in three_losses(model, *batch())]
    assert int(fair_backward(losses, model.parameters()).status) == Status.OK
    scaler = torch.amp.GradScaler("cpu")
    losses = [loss * factor for loss in three_losses(model, *batch())]
    fair_backward(losses, model.parameters(), scaler=scaler)
    assert_gradients([g / SCALE for g in gradients(model)], expected_gradients())


def in_ranks(kind: str) -> dict[str, Any]:
    """Three steps on this rank's half of the batch; in the second the last rank overflows."""
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    def whole(tensors: list[Any]) -> list[Tensor]:
        full = [t.full_tensor() if isinstance(t, DTensor) else t for t in tensors]
        return [t.detach().clone() for t in full]

    model: nn.Module = network()
    if kind == "ddp":
        model = nn.parallel.DistributedDataParallel(model)
    elif kind == "fsdp2":
        assert isinstance(model, nn.Sequential)
        for layer in (model[0], model[2]):
            fully_shard(layer)
        fully_shard(model)
    trained, scaler = list(model.parameters()), torch.amp.GradScaler("cpu")
    optimizer = torch.optim.SGD(trained, lr=0.5, momentum=0.9)
    rank, world = dist.get_rank(), dist.get_world_size()
    x, y = (t.chunk(world)[rank] for t in batch())
    first, stays, scales = [], [], []
    for step in range(3):
        before = whole(trained)
        losses = three_losses(model, x, y)
        if step == 1 and rank == world - 1:
            losses[1] = losses[1] * 1e37
        fair_backward(losses, trained, scaler=scaler)
        if step == 0:
            first = [g / SCALE for g in whole([p.grad for p in trained])]
        scaler.step(optimizer)
        scaler.update()
        after = whole(trained)
        stays.append([torch.equal(a, b) for a, b in zip(before, after, strict=True)])
        scales.append(scaler.get_scale())
    return {"first": first, "stays": stays, "scales": scales, "end": after}


def every_kind() -> dict[str, dict[str, Any]]:
    return {kind: in_ranks(kind) for kind in ("plain", "ddp", "fsdp2")}


def test_ranks_scale_skip_and_lower_the_scale_together() -> None:
    results = run_ranks(every_kind, 2)
    for kind in ("plain", "ddp", "fsdp2"):
        for rank in results:
            assert_gradients(rank[kind]["first"], expected_gradients())
            assert rank[kind]["stays"] == [[False] * 4, [True] * 4, [False] * 4]
            assert rank[kind]["scales"] == [SCALE, SCALE / 2, SCALE / 2]
            assert all(map(torch.equal, rank[kind]["end"], results[0][kind]["end"]))
