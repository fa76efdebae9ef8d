"""Weights from the losses alone, against their papers' formulas."""

from __future__ import annotations

import math

import pytest
import torch

from fairhuman.fairness.losses import (
    DWA,
    LOG_VARIANCE_LR,
    MEMORY,
    InverseLoss,
    LossRule,
    Uncertainty,
)

ALL = [True, True, True]
HISTORY = [[0.5, 0.2, 0.1], [0.4, 0.3, 0.05], [0.45, 0.1, 0.02], [0.3, 0.12, 0.06]]


@pytest.mark.parametrize("rule", [InverseLoss(3), DWA(3), Uncertainty(3)])
def test_the_first_steps_weights_are_equal(rule: LossRule) -> None:
    assert rule.weights(ALL).tolist() == [1.0, 1.0, 1.0]
    assert rule.weights([True, False, True]).tolist() == [1.0, 0.0, 1.0]


def test_inverse_losses_have_a_mean_of_one() -> None:
    rule, mean = InverseLoss(3), list(HISTORY[0])
    rule.learn(HISTORY[0])
    for losses in HISTORY[1:]:
        rule.learn(losses)
        mean = [MEMORY * old + (1 - MEMORY) * new for old, new in zip(mean, losses, strict=True)]
    inverse = [1 / value for value in mean]
    right = [3 * value / sum(inverse) for value in inverse]
    assert rule.weights(ALL).tolist() == pytest.approx(right)


def test_dwa_is_the_softmax_of_the_windows_ratios() -> None:
    rule = DWA(3, window=2)
    for losses in HISTORY[:3]:
        rule.learn(losses)
        assert rule.weights(ALL).tolist() == pytest.approx([1.0, 1.0, 1.0])
    rule.learn(HISTORY[3])
    before, last = (
        [sum(pair) / 2 for pair in zip(*HISTORY[i : i + 2], strict=True)] for i in (0, 2)
    )
    powers = [math.exp(b / a / 2) for a, b in zip(before, last, strict=True)]
    right = [3 * power / sum(powers) for power in powers]
    assert rule.weights(ALL).tolist() == pytest.approx(right)
    some = rule.weights([True, False, True])
    assert some.tolist() == pytest.approx(
        [2 * powers[0] / (powers[0] + powers[2]), 0.0, 2 * powers[2] / (powers[0] + powers[2])]
    )


def test_uncertainty_trains_log_variances_by_adam() -> None:
    rule = Uncertainty(3)
    s = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([s], lr=LOG_VARIANCE_LR)
    for step in range(50):
        losses = HISTORY[step % 4]
        assert rule.weights(ALL).tolist() == pytest.approx((-s).exp().tolist())
        adam.zero_grad()
        ((-s).exp() * torch.tensor(losses) + s).sum().backward()
        adam.step()
        rule.learn(losses)


def test_uncertainty_ends_at_the_inverse_of_a_constant_loss() -> None:
    rule = Uncertainty(2)
    for _ in range(3000):
        rule.learn([0.2, 3.0])
    assert rule.weights([True, True]).tolist() == pytest.approx([5.0, 1 / 3], rel=1e-2)


@pytest.mark.parametrize("make", [InverseLoss, lambda count: DWA(count, 1), Uncertainty])
@pytest.mark.parametrize("strange", [0.0, math.nan, math.inf, -1.0])
def test_a_loss_that_is_absent_or_strange_teaches_nothing(make: type, strange: float) -> None:
    rule, without = make(3), make(3)
    for losses in HISTORY:
        rule.learn(losses)
        rule.learn([strange] * 3) if not isinstance(rule, DWA) else None
        without.learn(losses)
    assert torch.equal(rule.weights(ALL), without.weights(ALL))
    rule.learn([0.1, strange, 0.1])
    assert bool(rule.weights(ALL).isfinite().all())
    assert bool((rule.weights(ALL) > 0).all())
