"""Every rule in the trainer's modes at two ranks, against one process that walks along."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks
from test_modes import DOUBLE, Walk, logged_gram, sketched, train_on_ranks, walk
from torch import Tensor
from training_modes import DWA_WINDOW, Way

from fairhuman.checkpointing import load_balancer
from fairhuman.common.run_folder import BALANCER
from fairhuman.fairness.losses import DWA, InverseLoss, LossRule, Uncertainty
from fairhuman.fairness.mpd import Status
from fairhuman.fairness.rules import RULES
from fairhuman.fairness.solve import Solver
from fairhuman.training.balancers.base import Balance

LENGTH: dict[str, Any] = {"normalize": "ball", "max_norm": 0.5}
SOLVING = [
    *(Way("exact", 2, rule=rule, steps=3, **LENGTH) for rule in RULES),
    *(Way("exact", 3, rule=rule, steps=3, keep=0.9, **LENGTH) for rule in RULES),
    *(Way("amortized", 2, rule=rule, steps=5, keep=0.9, **LENGTH) for rule in RULES),
    *(Way("sketch", 3, rule=rule, every=1, steps=3, keep=0.9, **LENGTH) for rule in RULES),
    *(Way("sketch", 2, rule=rule, every=1, accumulation=1, **LENGTH) for rule in RULES[1:4]),
    Way("amortized", 2, rule="log_mpd", between="stale", steps=5, **LENGTH),
    Way("amortized", 2, rule="log_mpd", reduction="region", between="stale", steps=5, **LENGTH),
    Way("amortized", 2, rule="log_mpd", accumulation=1, between="stale", steps=5, **LENGTH),
    Way("exact", 2, rule="log_mpd", floor=0.3, normalize="simplex", keep=0.5),
    Way("exact", 2, rule="aligned", normalize="none"),
]
FOLLOWING = [
    Way(mode, stage, steps=6, accumulation=accumulation)
    for mode in ("inverse_loss", "dwa", "uncertainty")
    for stage, accumulation in ((2, 2), (3, 1))
]
NANS = [Way("dwa", 2, steps=3, nan_at=1), Way("exact", 2, rule="mgda", steps=2, nan_at=0)]
WAYS = [*SOLVING, *FOLLOWING, *NANS]


@pytest.fixture(scope="module")
def trained() -> list[list[dict[str, Any]]]:
    """What each rank found of all ways."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = run_ranks(train_on_ranks, 2, WAYS)
    torch.set_num_threads(threads)
    return found


def of(ways: Sequence[Way]) -> list[Any]:
    return [pytest.param(WAYS.index(way), id=str(way)) for way in ways]


def solver(way: Way) -> Solver:
    return Solver(2.0, "ball", 1.0, way.floor, way.keep, way.rule)  # type: ignore[arg-type]


def means(walked: Walk, step: int) -> Tensor:
    return walked.losses[step].mean(1)


def walked_along(trained: list[list[dict[str, Any]]], index: int) -> tuple[list[Balance], Walk]:
    reports = trained[0][index]["reports"]
    return reports, walk(WAYS[index], reports)


@pytest.mark.parametrize("index", of(SOLVING))
def test_measured_steps_take_the_rules_weights_of_the_whole_batch(
    trained: list[list[dict[str, Any]]], index: int
) -> None:
    way, (reports, walked) = WAYS[index], walked_along(trained, index)
    measured = [(step, r) for step, r in enumerate(reports) if r.grad_norms[0] is not None]
    assert len(measured) >= 2
    for step, report in measured:
        rows = sketched(walked.rows[step]) if way.mode == "sketch" else walked.rows[step]
        right = solver(way)(rows @ rows.T, losses=means(walked, step))
        found = torch.tensor(report.weights, dtype=DOUBLE)
        # The trainer's gradients are float32.
        first, second = found @ rows, right.weights @ rows
        assert float(torch.cosine_similarity(first, second, dim=0)) > 1 - 1e-7
        assert found.sign().tolist() == right.weights.sign().tolist()
        if way.normalize == "simplex":
            assert float(found.abs().sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("index", of(SOLVING))
def test_the_step_goes_where_the_weights_say(
    trained: list[list[dict[str, Any]]], index: int
) -> None:
    way, (reports, walked) = WAYS[index], walked_along(trained, index)
    for report, rows in zip(reports, walked.rows, strict=True):
        assert not report.skipped
        norm = float((torch.tensor(report.weights, dtype=DOUBLE) @ rows).norm())
        assert report.update_norm == pytest.approx(norm, rel=1e-4)
        if way.normalize == "ball":
            assert norm == pytest.approx(way.max_norm, rel=1e-4)
        assert sum(share or 0.0 for share in report.shares) == pytest.approx(1.0)
        if way.keep:
            assert report.progress[0] is not None
            assert report.progress[0] >= way.keep - 1e-12
    for p, right in zip(trained[0][index]["parameters"], walked.parameters, strict=True):
        assert float((p.double() - right.detach()).abs().max()) < 1e-4


@pytest.mark.parametrize("index", of([way for way in SOLVING if way.between == "stale"]))
def test_between_refreshes_the_losses_are_those_of_the_first_micro_batches(
    trained: list[list[dict[str, Any]]], index: int
) -> None:
    way, (reports, walked) = WAYS[index], walked_along(trained, index)
    gram = logged_gram(reports[0])
    known = means(walked, 0)
    for step in (1, 2):
        assert reports[step].grad_norms[0] is None
        areas, parts = walked.areas[step], walked.losses[step]
        first = slice(0, way.ranks)
        share = areas[:, first].sum(1) / areas.sum(1)
        predicted = parts[:, first].sum(1) / parts.shape[1] / share
        predicted = torch.where(share > 0, predicted, known)
        here = walked.rows[step].any(1)
        right = torch.zeros(3, dtype=DOUBLE)
        right[here] = solver(way)(gram[here][:, here], losses=predicted[here]).weights
        found = torch.tensor(reports[step].weights, dtype=DOUBLE)
        ours, theirs = found / found.sum(), right / right.sum()
        assert ours.tolist() == pytest.approx(theirs.tolist(), rel=1e-4)


def fresh(mode: str) -> LossRule:
    return {"inverse_loss": InverseLoss, "uncertainty": Uncertainty}.get(
        mode, lambda count: DWA(count, DWA_WINDOW)
    )(3)


@pytest.mark.parametrize("index", of(FOLLOWING))
def test_weights_follow_the_losses_of_earlier_steps(
    trained: list[list[dict[str, Any]]], index: int
) -> None:
    reports, walked = walked_along(trained, index)
    rule, seen = fresh(WAYS[index].mode), []
    for step, report in enumerate(reports):
        present = walked.rows[step].any(1).tolist()
        right = rule.weights(present)
        assert report.weights == pytest.approx(right.tolist(), rel=1e-5)
        norm = float((right @ walked.rows[step]).norm())
        assert report.update_norm == pytest.approx(norm, rel=1e-4)
        seen.append(report.weights)
        rule.learn(means(walked, step).tolist())
    assert seen[0] == [1.0, 1.0, 1.0]
    assert any(weights[0] != weights[1] > 0 for weights in seen[1:])


@pytest.mark.parametrize("index", of(WAYS))
def test_ranks_hold_the_same_bits(trained: list[list[dict[str, Any]]], index: int) -> None:
    first, other = (results[index] for results in trained)
    for a, b in zip(first["parameters"], other["parameters"], strict=True):
        assert torch.equal(a, b)
    assert repr(first["reports"]) == repr(other["reports"])
    for key, value in first["state"].items():
        torch.testing.assert_close(value, other["state"][key], rtol=0, atol=0, equal_nan=True)


def test_a_step_that_is_not_finite_is_skipped_and_teaches_nothing(
    trained: list[list[dict[str, Any]]],
) -> None:
    by_loss, by_rule = (trained[0][WAYS.index(way)] for way in NANS)
    assert [report.skipped for report in by_loss["reports"]] == [False, True, False]
    assert by_loss["state"]["steps"] == 0  # a window of two steps is over
    assert bool((by_loss["state"]["last"] > 0).any())
    assert [report.skipped for report in by_rule["reports"]] == [True, False]
    assert by_rule["reports"][0].status & Status.NONFINITE
    for found in (by_loss, by_rule):
        assert all(bool(p.isfinite().all()) for p in found["parameters"])


@pytest.mark.parametrize("mode", ["inverse_loss", "dwa", "uncertainty"])
@pytest.mark.parametrize("stop", range(0, 9, 2))
def test_a_state_from_a_checkpoint_continues_to_the_bit(
    mode: str, stop: int, tmp_path: Path
) -> None:
    rng = torch.Generator().manual_seed(0)
    losses = (torch.rand(9, 3, generator=rng, dtype=DOUBLE) + 0.01).tolist()
    losses[3][1] = 0.0  # absent
    whole, first, again = fresh(mode), fresh(mode), fresh(mode)
    for step in losses:
        whole.learn(step)
    for step in losses[:stop]:
        first.learn(step)
    torch.save(first.state_dict(), tmp_path / BALANCER)
    again.load_state_dict(load_balancer(tmp_path) or {})
    for step in losses[stop:]:
        again.learn(step)
    for present in ([True, True, True], [True, False, True]):
        assert torch.equal(again.weights(present), whole.weights(present))
    for key, value in whole.state_dict().items():
        found = again.state_dict()[key]
        assert torch.equal(found, value) if isinstance(value, Tensor) else found == value


def test_a_state_of_another_rule_or_number_is_refused() -> None:
    with pytest.raises(ValueError, match="the state has means, not"):
        Uncertainty(3).load_state_dict(InverseLoss(3).state_dict())
    with pytest.raises(ValueError, match="of 2 losses, not 3"):
        InverseLoss(3).load_state_dict(InverseLoss(2).state_dict())
