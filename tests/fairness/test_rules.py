"""Weights by each rule, against what the rule asks for, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize, nnls, root
from torch import Tensor

from fairhuman.common.extras import install_line
from fairhuman.fairness import rules
from fairhuman.fairness.mpd import Status, solve_mpd
from fairhuman.fairness.rules import NATIVE, RULES, Rule
from fairhuman.fairness.solve import Solver

DOUBLE = torch.float64
ON_HOST = [rule for rule in RULES if rule not in NATIVE]


def gradients(seed: int, count: int = 3) -> Tensor:
    """[K, P]: of different lengths, partly in conflict, the first near the others' mean."""
    rng = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, 12, generator=rng, dtype=DOUBLE)
    rows[1:] -= 0.3 * rows[:1]
    return rows * torch.exp(torch.randn(count, 1, generator=rng, dtype=DOUBLE))


CASES = [gradients(seed, count) for seed, count in enumerate([2, 3, 3, 3, 4, 5, 8])]
LOSSES = torch.tensor([0.3, 0.05, 0.02, 0.7, 1.3, 0.1, 0.4, 0.2], dtype=DOUBLE)


def solve(rule: Rule, gram: Tensor, keep: float = 0.0, normalize: str = "none") -> Tensor:
    solver = Solver(normalize=normalize, max_norm=None, keep=keep, rule=rule)  # type: ignore[arg-type]
    return solver(gram, losses=LOSSES[: len(gram)]).weights


def factor_of(gram: Tensor) -> np.ndarray:
    """A square G with G'G = A."""
    values, vectors = np.linalg.eigh(gram.numpy())
    return np.sqrt(values.clip(min=0.0))[:, None] * vectors.T


def same_direction(found: Tensor, right: Tensor, rel: float = 1e-9) -> None:
    found, right = found / found.norm(), right / right.norm()
    assert found.tolist() == pytest.approx(right.tolist(), rel=rel, abs=rel)


@pytest.mark.parametrize("rows", CASES)
def test_nash_solves_the_bargaining_problem(rows: Tensor) -> None:
    A = rows @ rows.T
    w = solve("nash", A)
    found = root(lambda v: np.exp(v) * (A.numpy() @ np.exp(v)) - 1, w.log().numpy() + 0.01)
    assert w.tolist() == pytest.approx(np.exp(found.x).tolist(), rel=1e-7)
    assert (w * (A @ w)).tolist() == pytest.approx([1.0] * len(A), rel=1e-12)
    assert torch.equal(w, solve_mpd(A, 1.0).weights)


@pytest.mark.parametrize("rows", CASES)
def test_log_mpd_is_mpd_of_the_losses_logarithms(rows: Tensor) -> None:
    losses = LOSSES[: len(rows)]
    logs = rows / losses[:, None]
    right = solve_mpd(logs @ logs.T).weights
    w = solve("log_mpd", rows @ rows.T)
    assert (w @ rows).tolist() == pytest.approx((right @ logs).tolist(), rel=1e-9, abs=1e-12)


def test_log_mpd_does_not_depend_on_the_losses_units() -> None:
    rows, units = CASES[1], torch.tensor([1e-4, 3.0, 1e5], dtype=DOUBLE)
    solver = Solver(rule="log_mpd", keep=0.5)
    first = solver(rows @ rows.T, losses=LOSSES[:3])
    scaled = rows * units[:, None]
    second = solver(scaled @ scaled.T, losses=LOSSES[:3] * units)
    same_direction(second.weights @ scaled, first.weights @ rows)
    assert float(second.cosine) == pytest.approx(float(first.cosine))


@pytest.mark.parametrize("rows", CASES)
def test_imtl_g_has_equal_projections(rows: Tensor) -> None:
    d = solve("imtl_g", rows @ rows.T) @ rows
    projections = (rows / rows.norm(dim=1, keepdim=True)) @ d
    assert projections.tolist() == pytest.approx([float(projections[0])] * len(rows), rel=1e-8)


@pytest.mark.parametrize("rows", CASES)
def test_mgda_is_the_nearest_point_of_the_hull_to_the_origin(rows: Tensor) -> None:
    A = rows @ rows.T
    w = solve("mgda", A)
    # min ||Gw||^2 + (1 - sum w)^2 over w >= 0 is that point up to its length.
    system = np.vstack([factor_of(A), np.ones(len(A))])
    right, _ = nnls(system, np.append(np.zeros(len(A)), 1.0))
    same_direction(w @ rows, torch.from_numpy(right) @ rows, 1e-6)
    assert float(w.sum()) == pytest.approx(1.0, rel=1e-9)


@pytest.mark.parametrize("rows", CASES)
def test_upgrad_is_the_mean_of_projections_onto_the_dual_cone(rows: Tensor) -> None:
    A = rows @ rows.T
    G, right = factor_of(A), torch.zeros(len(A), dtype=DOUBLE)
    for unit in np.eye(len(A)) / len(A):
        # min v'Av over v >= u, with v = u + z
        z, _ = nnls(G, -G @ unit)
        right += torch.from_numpy(unit + z)
    w = solve("upgrad", A)
    same_direction(w @ rows, right @ rows, 1e-5)
    assert bool((A @ w > -1e-6 * A.diagonal()).all()), "a loss would grow"


@pytest.mark.parametrize("rows", CASES)
def test_aligned_gives_all_components_the_least_singular_value(rows: Tensor) -> None:
    U, S, V = torch.linalg.svd(rows, full_matrices=False)
    mean = torch.full((len(rows),), 1 / len(rows), dtype=DOUBLE)
    right = float(S.min()) * mean @ U @ V
    found = solve("aligned", rows @ rows.T) @ rows
    # Only the length is that of a matrix of another scale.
    same_direction(found, right, 1e-8)


@pytest.mark.parametrize("rows", CASES)
def test_cagrad_has_the_best_worst_descent_near_the_mean(rows: Tensor) -> None:
    mean = rows.mean(0)
    radius = rules.CAGRAD_RADIUS * float(mean.norm())
    d = solve("cagrad", rows @ rows.T) @ rows
    assert float((d - mean).norm()) == pytest.approx(radius, rel=1e-5)
    # The best worst descent is, by duality, the least w'Ab + r ||g_w|| over the simplex.
    A, b, ones = (rows @ rows.T).numpy(), (rows @ mean).numpy(), np.ones(len(rows))
    bounds = minimize(
        lambda w: w @ b + radius * np.sqrt(max(w @ A @ w, 1e-300)),
        ones / len(rows),
        bounds=[(0.0, 1.0)] * len(rows),
        constraints=[{"type": "eq", "fun": lambda w: w.sum() - 1}],
        options={"ftol": 1e-14, "maxiter": 2000},
    )
    length = float(rows.norm(dim=1).max()) * radius
    assert float((rows @ d).min()) == pytest.approx(bounds.fun, abs=1e-4 * length)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("unit", [1e-7, 1e5])
def test_directions_do_not_depend_on_the_unit_or_the_order(rule: Rule, unit: float) -> None:
    for rows in CASES[:4]:
        A = rows @ rows.T
        w = solve(rule, A)
        same_direction(solve(rule, unit**2 * A) @ rows, w @ rows, 1e-5)
        order = torch.arange(len(A)).flip(0)
        solver = Solver(normalize="none", max_norm=None, rule=rule)
        again = solver(A[order][:, order], losses=LOSSES[: len(A)][order]).weights[order]
        same_direction(again @ rows, w @ rows, 1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_what_is_absent_gets_no_weight_and_changes_nothing(rule: Rule) -> None:
    rows = CASES[2]
    A = torch.zeros(4, 4, dtype=DOUBLE)
    here = torch.tensor([0, 2, 3])
    A[here[:, None], here] = rows @ rows.T
    losses = torch.zeros(4, dtype=DOUBLE)
    losses[here] = LOSSES[:3]
    found = Solver(rule=rule, keep=0.8)(A, losses=losses)
    right = Solver(rule=rule, keep=0.8)(rows @ rows.T, losses=LOSSES[:3])
    assert int(found.status) & Status.ABSENT
    assert float(found.weights[1]) == 0.0
    assert found.weights[here].tolist() == pytest.approx(right.weights.tolist(), rel=1e-12)
    assert float(found.scale) == pytest.approx(float(right.scale), rel=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_nothing_is_there(rule: Rule) -> None:
    found = Solver(rule=rule, keep=0.8)(torch.zeros(3, 3, dtype=DOUBLE), losses=torch.zeros(3))
    assert not found.weights.any()
    assert int(found.status) == Status.ABSENT
    assert float(found.norm) == 0.0
    assert float(found.scale) == 1.0


@pytest.mark.parametrize("rule", RULES)
def test_one_objective_has_the_whole_step(rule: Rule) -> None:
    found = Solver(rule=rule, max_norm=0.5, keep=0.8)(
        torch.tensor([[4.0]], dtype=DOUBLE), losses=torch.tensor([0.1])
    )
    assert float(found.weights * found.scale) == pytest.approx(0.25)
    assert float(found.cosine) == 1.0


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_matrix_that_is_not_finite_gets_no_weights(rule: Rule, bad: float) -> None:
    A = CASES[1] @ CASES[1].T
    A[1, 2] = A[2, 1] = bad
    found = Solver(rule=rule, keep=0.5)(A, losses=LOSSES[:3])
    assert int(found.status) & Status.NONFINITE
    assert not bool(found.solved)
    assert not found.weights.any()


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0, -1.0])
def test_a_loss_without_a_logarithm_gets_no_weights(bad: float) -> None:
    A = CASES[1] @ CASES[1].T
    found = Solver(rule="log_mpd")(A, losses=torch.tensor([0.1, bad, 0.1]))
    assert int(found.status) & Status.NONFINITE
    assert not found.weights.any()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("off", [0.0, 1e-15, 1e-12, 1e-6])
def test_exact_conflict_has_a_finite_step(rule: Rule, off: float) -> None:
    A = torch.tensor([[1.0, off - 1.0], [off - 1.0, 1.0]], dtype=DOUBLE)
    for keep in (0.0, 0.9):
        found = Solver(rule=rule, keep=keep)(A, losses=torch.ones(2))
        assert bool(found.weights.isfinite().all())
        assert bool(found.scale.isfinite())
        weights = found.weights * found.scale
        assert float((weights @ A @ weights).clamp(min=0).sqrt()) <= 1.0 + 1e-4
        if off == 0.0:
            assert int(found.status) & Status.STATIONARY


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("keep", [0.5, 0.9, 0.99])
def test_keep_is_reached_by_turning_no_further(rule: Rule, keep: float) -> None:
    turned = 0
    for rows in CASES:
        A, losses = rows @ rows.T, LOSSES[: len(rows)]
        free = Solver(rule=rule)(A, losses=losses)
        kept = Solver(rule=rule, keep=keep)(A, losses=losses)
        d = kept.weights @ rows
        cosine = float(d @ rows[0] / (d.norm() * rows[0].norm()))
        assert cosine >= keep - 1e-9
        assert float(kept.cosine) == pytest.approx(cosine, abs=1e-9)
        assert float(kept.norm * kept.scale) == pytest.approx(1.0)
        assert float(d.norm()) == pytest.approx(float(kept.norm), rel=1e-9)
        if int(kept.status) & Status.KEPT:
            turned += 1
            assert cosine == pytest.approx(keep, abs=1e-9)
            assert kept.weights[1:].tolist() == pytest.approx(free.weights[1:].tolist(), rel=1e-9)
        else:
            assert float(free.cosine) >= keep
    assert turned


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("normalize", ["ball", "simplex", "none"])
def test_the_step_has_the_length_that_is_asked_for(rule: Rule, normalize: str) -> None:
    for rows in CASES:
        solver = Solver(normalize=normalize, max_norm=0.1, rule=rule)  # type: ignore[arg-type]
        found = solver(rows @ rows.T, losses=LOSSES[: len(rows)])
        length = float(found.norm * found.scale)
        if normalize == "ball":
            assert length == pytest.approx(0.1)
        elif normalize == "simplex":
            total = float((found.weights * found.scale).abs().sum())
            assert length == pytest.approx(0.1) or total == pytest.approx(1.0)
        assert length <= 0.1 * (1 + 1e-12)


def test_a_float32_matrix_is_solved_as_one_of_float64() -> None:
    A = (CASES[1] @ CASES[1].T).float()
    for rule in RULES:
        found = Solver(rule=rule)(A, losses=LOSSES[:3])
        right = Solver(rule=rule)(A.double(), losses=LOSSES[:3])
        assert found.weights.tolist() == pytest.approx(right.weights.tolist(), rel=1e-4)


@pytest.mark.parametrize("rule", ON_HOST)
def test_what_is_no_gram_matrix_is_refused(rule: Rule) -> None:
    with pytest.raises(ValueError, match=r"gram\[1, 0\] = 0.5, gram\[0, 1\] = 0.1"):
        Solver(rule=rule)(torch.tensor([[1.0, 0.1], [0.5, 1.0]], dtype=DOUBLE))
    with pytest.raises(ValueError, match="square"):
        Solver(rule=rule)(torch.zeros(2, 3, dtype=DOUBLE))
    with pytest.raises(ValueError, match="max_norm"):
        Solver(rule=rule, max_norm=None)(torch.eye(2, dtype=DOUBLE))


@pytest.mark.parametrize("seed", range(20))
def test_random_matrices_of_any_rank_and_scale_get_finite_weights(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count, rank = int(rng.integers(1, 17)), int(rng.integers(1, 20))
    scales = 10.0 ** rng.uniform(-6, 6, (count, 1)) if seed % 2 else np.ones((count, 1))
    rows = torch.from_numpy(rng.normal(size=(count, rank)) * scales)
    for rule in RULES:
        found = Solver(rule=rule, keep=0.5)(rows @ rows.T, losses=torch.ones(count))
        assert bool(found.solved), rule
        assert bool(found.weights.isfinite().all())
        assert float((found.weights * found.scale @ rows).norm()) <= 1.0 + 1e-3


def test_a_solver_that_fails_gives_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(gram: Tensor) -> Tensor:
        raise ValueError("no solution")

    monkeypatch.setattr(rules, "weighting", lambda rule: fail)
    with pytest.warns(UserWarning, match="mgda: no weights"):
        found = Solver(rule="mgda")(torch.eye(2, dtype=DOUBLE))
    assert not bool(found.solved)


def test_settings_of_other_rules_are_refused() -> None:
    with pytest.raises(ValueError, match="'nash' has no alpha"):
        Solver(3.0, rule="nash")
    with pytest.raises(ValueError, match="'mgda' has no floor"):
        Solver(floor=0.1, rule="mgda")
    with pytest.raises(ValueError, match="rule must be one of mpd, log_mpd"):
        Solver(rule="max")  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", ON_HOST)
def test_a_missing_package_is_named_with_the_command(
    rule: Rule, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("torchjd", "torchjd.aggregation", "quadprog", "qpsolvers"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    rules.weighting.cache_clear()
    with pytest.raises(ImportError, match=f"rule='{rule}'") as caught:
        rules.weighting(rule)
    assert install_line("rules") in str(caught.value)
    assert "\n" not in str(caught.value)
