"""Properties of the weights: closed forms, equivariances, accuracy on hard matrices, statuses."""

from __future__ import annotations

import math
from collections.abc import Iterator

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy.optimize import nnls

from fairhuman import _C
from fairhuman.fairness import mpd
from fairhuman.fairness.mpd import MPDSolution, Normalize, Status, solve_mpd, status_name

Array = NDArray[np.float64]
ALPHAS = (0.5, 1.0, 2.0, 8.0, 16.0)
EPS = float(np.finfo(np.float64).eps)


def solve(A: Array | list[list[float]], alpha: float = 2.0) -> MPDSolution:
    return solve_mpd(torch.as_tensor(np.asarray(A, dtype=np.float64)), alpha)


def solve_batch(A: Array, alpha: float = 2.0) -> tuple[Array, Array, Array, Array, Array]:
    """Weights, norms, residuals, iterations and statuses of [N, K, K], in one native call."""
    A = np.ascontiguousarray(A, dtype=np.float64)
    N, K, _ = A.shape
    out = np.empty((N, K + 6))
    _C.solve_mpd_cpu(A.ctypes.data, N, K, alpha, 1e-7, 0, math.inf, 0.0, 0, out.ctypes.data)
    norm, residual, _, _, iterations, status = out[:, K:].T
    return out[:, :K], norm, residual, iterations, status.astype(int)


def backward_error(A: Array, w: Array, alpha: float) -> Array:
    """[N]: the relative change of A and w^(-1/alpha) for which w is exact (Oettli and Prager)."""
    target = w ** (-1 / alpha)
    row = np.einsum("nij,nj->ni", A, w)
    size = np.einsum("nij,nj->ni", np.abs(A), w)
    return np.asarray(np.max(np.abs(row - target) / (size + target), axis=1))


def hard_gradients(
    rng: np.random.Generator, N: int, K: int, rank: int, tightness: float = 2.0
) -> Array:
    """[N, K, rank]: norms 1e-8 .. 1e8 mixed in one matrix, half of them with cosines to +-0.9999.

    A row is a random sign times a common vector, plus 10^-tightness .. 1 of its own.
    """
    G = rng.normal(size=(N, K, rank)) * 10.0 ** rng.uniform(-tightness, 0, size=(N, 1, 1))
    signs = rng.choice([-1, 1], size=(N, K, 1)) * (rng.uniform(size=(N, 1, 1)) < 0.5)
    G += signs * rng.normal(size=(N, 1, rank))
    G /= np.linalg.norm(G, axis=2, keepdims=True)
    return np.asarray(G * 10.0 ** rng.uniform(-8, 8, size=(N, K, 1)))


def gram_of(G: Array) -> Array:
    return np.asarray(G @ np.swapaxes(G, -1, -2))


def high_precision(A: Array, alpha: float, w: Array) -> list[mpmath.mpf]:
    """The solution to 60 digits: Newton from w, which is the answer if it gets there.

    (1) has exactly one solution w > 0, so a residual of 1e-50 proves it, whatever the start.
    """
    K = len(A)
    with mpmath.workdps(80):
        M = mpmath.matrix(A.tolist())
        power = -1 / mpmath.mpf(alpha)
        x = mpmath.matrix([mpmath.mpf(float(value)) for value in w])
        for _ in range(60):
            target = mpmath.matrix([x[i] ** power for i in range(K)])
            r = M * x - target
            if max(abs(r[i] / target[i]) for i in range(K)) < mpmath.mpf(10) ** -50:
                assert min(x) > 0
                return list(x)
            # In p = dx / x and with a unit diagonal, for the scales of x may differ by 1e200.
            size = [M[i, i] * x[i] ** 2 - power * target[i] * x[i] for i in range(K)]
            root = [mpmath.sqrt(value) for value in size]
            H = mpmath.eye(K)
            for i in range(K):
                for j in range(i):
                    H[i, j] = H[j, i] = M[i, j] * x[i] * x[j] / (root[i] * root[j])
            q = mpmath.lu_solve(H, mpmath.matrix([-x[i] * r[i] / root[i] for i in range(K)]))
            p = [q[i] / root[i] for i in range(K)]
            step = min([mpmath.mpf(1)] + [-mpmath.mpf("0.9") / value for value in p if value < 0])
            x = mpmath.matrix([x[i] * (1 + step * p[i]) for i in range(K)])
        raise AssertionError("Newton did not reach the solution from w")


# Closed forms


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("a", [1e-16, 0.3, 1.0, 7.0, 1e16])
def test_one_objective_has_a_power_law(a: float, alpha: float) -> None:
    assert solve([[a]], alpha).weights.item() == pytest.approx(
        a ** (-alpha / (1 + alpha)), rel=1e-14
    )


@pytest.mark.parametrize("alpha", ALPHAS)
def test_orthogonal_objectives_do_not_see_each_other(alpha: float) -> None:
    diagonal = 10.0 ** np.linspace(-16, 16, 7)
    w = solve(np.diag(diagonal), alpha).weights.numpy()
    np.testing.assert_allclose(w, diagonal ** (-alpha / (1 + alpha)), rtol=1e-14)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("K", [2, 3, 8, 16])
def test_constant_row_sums_give_equal_weights(K: int, alpha: float) -> None:
    first = np.array([2.0 ** -abs(min(k, K - k)) for k in range(K)])
    A = 3.0 * np.array([[first[abs(i - j)] for j in range(K)] for i in range(K)])
    expected = A[0].sum() ** (-alpha / (1 + alpha))
    np.testing.assert_allclose(solve(A, alpha).weights, expected, rtol=1e-13)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 4.0])
def test_collinear_gradients_of_rank_one(alpha: float) -> None:
    """w_i = n_i^-alpha (sum_j n_j^(1-alpha))^(-alpha/(1+alpha))."""
    n = np.array([1e-3, 0.2, 1.0, 40.0])
    expected = n**-alpha * (n ** (1 - alpha)).sum() ** (-alpha / (1 + alpha))
    solution = solve(np.outer(n, n), alpha)
    assert status_name(solution.status) == "ok"
    np.testing.assert_allclose(solution.weights, expected, rtol=1e-12)


def test_two_objectives_solve_a_cubic() -> None:
    """alpha = 2: a t^3 - b t^2 + b t - c = 0, w_2 = (c + b t^2)^(-2/3), w_1 = t^2 w_2."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        a, c = 10.0 ** rng.uniform(-6, 6, size=2)
        b = rng.uniform(-0.99, 0.99) * math.sqrt(a * c)
        with mpmath.workdps(50):
            roots = mpmath.polyroots([a, -b, b, -c], maxsteps=500, extraprec=400)
            (t,) = [
                root.real
                for root in map(mpmath.mpc, roots)
                if abs(root.imag) < 1e-30 * abs(root) and root.real > 0 and c + b * root.real**2 > 0
            ]
            w2 = (c + b * t * t) ** (mpmath.mpf(-2) / 3)
            expected = [float(t * t * w2), float(w2)]
        np.testing.assert_allclose(solve([[a, b], [b, c]]).weights, expected, rtol=1e-11)


@pytest.mark.parametrize(
    ("A", "expected"),
    [
        (4 * np.ones((3, 3)), [0.190786] * 3),
        (0.5 + 0.5 * np.eye(3), [0.629961] * 3),
        (-0.4 + 1.4 * np.eye(3), [2.924018] * 3),
        (np.outer([1, 2, 0.5], [1, 2, 0.5]), [0.433798, 0.108450, 1.735194]),
    ],
    ids=["4*ones", "r=0.5", "r=-0.4", "gg'"],
)
def test_known_values(A: Array, expected: list[float]) -> None:
    solution = solve(A)
    np.testing.assert_allclose(solution.weights, expected, atol=5e-7)
    assert status_name(solution.status) == "ok"


# Accuracy


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("K", range(2, 9))
def test_hard_matrices_are_solved_to_rounding(K: int, alpha: float) -> None:
    """Norms 1e-8 .. 1e8 and cosines to +-0.9999, full rank: the backward error is a few eps."""
    A = gram_of(hard_gradients(np.random.default_rng(K), 2000, K, rank=K + 12))
    w, norm, residual, _, status = solve_batch(A, alpha)
    assert not status.any()
    assert np.all(w > 0)
    assert backward_error(A, w, alpha).max() < 8 * EPS
    assert residual.max() < 4 * EPS
    np.testing.assert_allclose(norm**2, (w ** (1 - 1 / alpha)).sum(axis=1), rtol=1e-13)


@pytest.mark.parametrize("K", [12, 16])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_many_objectives_are_solved_too(K: int, alpha: float) -> None:
    A = gram_of(hard_gradients(np.random.default_rng(K), 300, K, rank=K + 4))
    w, _, _, _, status = solve_batch(A, alpha)
    assert not status.any()
    assert backward_error(A, w, alpha).max() < 1e-12


@pytest.mark.parametrize("K", range(3, 9))
def test_low_rank_is_solved_or_in_proven_conflict(K: int) -> None:
    """Below full rank a matrix is `stationary` exactly if 0 is a convex combination of the rows.

    The judge is non-negative least squares on the normalised gradients; the few matrices that it
    cannot tell from rounding are left out.
    """
    rng = np.random.default_rng(K)
    G = hard_gradients(rng, 300, K, rank=rng.integers(1, K), tightness=0.5)
    A = gram_of(G)
    w, _, residual, _, status = solve_batch(A)
    unit = G / np.linalg.norm(G, axis=2, keepdims=True)
    seen = set()
    for n in range(len(A)):
        system = np.vstack([unit[n].T, np.ones(K)])
        distance = nnls(system, np.append(np.zeros(system.shape[0] - 1), 1.0))[1]
        if 1e-9 < distance < 1e-5:
            continue
        expected = Status.STATIONARY if distance <= 1e-9 else Status.OK
        assert status[n] == expected, (n, distance)
        seen.add(expected)
    solved = status == Status.OK
    assert seen == {Status.OK, Status.STATIONARY}
    assert backward_error(A[solved], w[solved], 2.0).max() < 8 * EPS
    assert np.all(np.isfinite(w))
    assert np.all(w > 0)
    assert residual.max() < 4 * EPS


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("K", [2, 3, 5])
def test_weights_agree_with_high_precision(K: int, alpha: float) -> None:
    """Each weight has 11 digits where cosines stay below 0.99, whatever the mix of norms."""
    A = gram_of(hard_gradients(np.random.default_rng(100 + K), 12, K, rank=K + 12, tightness=0.5))
    w, *_ = solve_batch(A, alpha)
    for matrix, weights in zip(A, w, strict=True):
        exact = high_precision(matrix, alpha, weights)
        np.testing.assert_allclose(weights, [float(x) for x in exact], rtol=1e-11)


@pytest.mark.parametrize("r", [-0.9999, -0.99, 0.99, 0.9999])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_close_to_conflict_agrees_with_bisection(r: float, scale: float) -> None:
    """K = 2 against one-dimensional bisection in high precision (an independent method)."""
    A = np.array([[1.0, r * scale], [r * scale, scale**2]])
    w = solve(A).weights.numpy()
    with mpmath.workdps(60):
        a, b, c = (mpmath.mpf(x) for x in (A[0, 0], A[0, 1], A[1, 1]))

        def second(w1: mpmath.mpf) -> mpmath.mpf:  # from row 1: a w1 + b w2 = w1^(-1/2)
            return (w1 ** mpmath.mpf(-0.5) - a * w1) / b

        def excess(w1: mpmath.mpf) -> mpmath.mpf:  # row 2
            w2 = second(w1)
            return (b * w1 + c * w2) * mpmath.sqrt(w2) - 1

        edge = a ** (mpmath.mpf(-2) / 3)  # w2 > 0 is w1 above it for b < 0, below it for b > 0
        low, high = (edge, edge * 10**12) if b < 0 else (edge / 10**40, edge)
        sign = excess(high * (1 - mpmath.mpf(10) ** -50) if b > 0 else high) > 0
        for _ in range(400):
            middle = mpmath.sqrt(low * high)
            if (excess(middle) > 0) == sign:
                high = middle
            else:
                low = middle
        expected = [float(low), float(second(low))]
    np.testing.assert_allclose(w, expected, rtol=1e-10)


def test_solve_does_not_depend_on_the_scale_where_scipy_stops_at_once() -> None:
    """Gradient norms near 1e-3: the weights are those of norms near 1, scaled."""
    A = gram_of(np.random.default_rng(0).normal(size=(3, 9)))
    np.testing.assert_allclose(
        solve(1e-6 * A).weights, solve(A).weights * 1e-6 ** (-2 / 3), rtol=1e-13
    )


# Equivariances and other properties, over matrices that hypothesis draws


@st.composite
def grams(draw: st.DrawFn) -> Array:
    """Well-conditioned Gram matrices of 1 to 16 objectives, norms 1e-8 .. 1e8."""
    K = draw(st.integers(1, 16))
    G = draw(hnp.arrays(np.float64, (K, K), elements=st.floats(-1, 1, width=32)))
    exponents = draw(hnp.arrays(np.float64, K, elements=st.floats(-8, 8, width=32)))
    A = gram_of(G) + 0.1 * np.eye(K)
    norms = 10.0**exponents
    return np.asarray(A * np.outer(norms, norms))


properties = settings(derandomize=True, deadline=None, max_examples=150, database=None)
alphas = st.sampled_from(ALPHAS) | st.floats(0.5, 16.0)


@properties
@given(grams(), alphas)
def test_any_matrix_is_solved(A: Array, alpha: float) -> None:
    solution = solve(A, alpha)
    assert solution.status == Status.OK
    assert bool((solution.weights > 0).all())
    assert backward_error(A[None], solution.weights.numpy()[None], alpha)[0] < 1e-14 * alpha


@properties
@given(grams(), st.sampled_from([0.5, 1.0, 2.0, 3.0]), st.floats(1e-6, 1e6))
def test_scaling_all_gradients_scales_the_weights(A: Array, alpha: float, S: float) -> None:
    """g -> S g gives w -> S^(-2 alpha / (1 + alpha)) w: the same direction."""
    scaled = solve(A * S * S, alpha).weights
    expected = solve(A, alpha).weights * S ** (-2 * alpha / (1 + alpha))
    np.testing.assert_allclose(scaled, expected, rtol=1e-9)


@properties
@given(grams(), st.sampled_from([0.5, 1.0, 2.0, 3.0]), st.randoms(use_true_random=False))
def test_permuting_objectives_permutes_weights(A: Array, alpha: float, random: object) -> None:
    order = list(range(len(A)))
    random.shuffle(order)  # type: ignore[attr-defined]
    permuted = solve(A[np.ix_(order, order)], alpha).weights
    np.testing.assert_allclose(permuted, solve(A, alpha).weights[order], rtol=1e-9)


@properties
@given(grams(), st.data())
def test_alpha_1_does_not_depend_on_the_scale_of_one_objective(
    A: Array, data: st.DataObject
) -> None:
    """alpha = 1 (Nash): scaling g_i by s divides w_i by s."""
    scale = 10.0 ** data.draw(hnp.arrays(np.float64, len(A), elements=st.floats(-3, 3, width=32)))
    scaled = solve(A * np.outer(scale, scale), 1.0).weights
    np.testing.assert_allclose(scaled * scale, solve(A, 1.0).weights, rtol=1e-9)


@properties
@given(grams(), alphas, st.data())
def test_absent_objectives_leave_the_problem(A: Array, alpha: float, data: st.DataObject) -> None:
    """A zero row and column gives weight 0, and the others are solved as if it were not there."""
    K = len(A)
    absent = data.draw(st.lists(st.booleans(), min_size=K, max_size=K).filter(any))
    keep = np.flatnonzero(~np.array(absent))
    B = A.copy()
    B[absent, :] = 0.0
    B[:, absent] = 0.0
    solution = solve(B, alpha)
    assert status_name(solution.status) == "absent"
    assert bool((solution.weights[torch.tensor(absent)] == 0).all())
    if len(keep):
        alone = solve(A[np.ix_(keep, keep)], alpha)
        assert torch.equal(solution.weights[torch.from_numpy(keep)], alone.weights)
        assert solution.norm == alone.norm
    else:
        assert solution.norm == 0


@properties
@given(
    hnp.arrays(
        np.float64,
        st.integers(1, 6).map(lambda K: (K, K)),
        elements=st.floats(allow_nan=True, allow_infinity=True),
    ),
    alphas,
)
def test_no_symmetric_matrix_breaks_it(A: Array, alpha: float) -> None:
    """Whatever the entries, even far from any Gram matrix: finite weights >= 0 and a status."""
    A = np.tril(A) + np.tril(A, -1).T
    w, norm, residual, _, status = solve_batch(A[None], alpha)
    assert np.isfinite(w).all()
    assert (w >= 0).all()
    assert np.isfinite(norm[0])
    assert np.isfinite(residual[0])
    assert (status[0] & Status.NONFINITE != 0) >= (not np.isfinite(A).all())


# Statuses


@pytest.mark.parametrize("alpha", ALPHAS)
def test_exact_conflict_is_regularised(alpha: float) -> None:
    solution = solve([[1.0, -1.0], [-1.0, 1.0]], alpha)
    assert status_name(solution.status) == "stationary"
    assert bool(torch.isfinite(solution.weights).all())
    # (A + ridge I) w = w^(-1/alpha), where A w = 0: the ridge is 1e-8 of the diagonal.
    np.testing.assert_allclose(solution.weights, 1e-8 ** (-alpha / (1 + alpha)), rtol=1e-6)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("K", [2, 3, 5, 8])
def test_conflict_is_seen_at_every_mix_of_scales(K: int, alpha: float) -> None:
    """Rows whose positive combination is zero, with norms 1e-8 .. 1e8: always `stationary`."""
    rng = np.random.default_rng(K)
    G = rng.normal(size=(200, K, 20))
    G[:, -1] = -(rng.uniform(0.1, 1.0, size=(200, K - 1, 1)) * G[:, :-1]).sum(axis=1)
    A = gram_of(G * 10.0 ** rng.uniform(-8, 8, size=(200, K, 1)))
    w, _, residual, _, status = solve_batch(A, alpha)
    assert np.all(status == Status.STATIONARY)
    assert np.isfinite(w).all()
    assert residual.max() < 1e-12


def test_conflict_beside_an_absent_and_a_neutral_objective() -> None:
    A = np.zeros((4, 4))
    A[:2, :2] = [[1.0, -1.0], [-1.0, 1.0]]
    A[2, 2] = 1e16
    solution = solve(A)
    assert status_name(solution.status) == "absent|stationary"
    assert solution.weights[3] == 0
    assert solution.weights[2].item() == pytest.approx(1e16 ** (-2 / 3), rel=1e-7)


def test_norm_bounds_the_direction_in_conflict() -> None:
    """Scaling by norm never amplifies a direction that is only rounding."""
    G = np.array([[1.0, 2.0], [-1.0, -2.0]])
    solution = solve(gram_of(G))
    assert np.linalg.norm(solution.weights.numpy() @ G) <= solution.norm


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [(0, 0), (0, 1), (2, 2)])
def test_nonfinite_gives_zero_weights(bad: float, place: tuple[int, int]) -> None:
    A = np.eye(3)
    A[place] = A[place[::-1]] = bad
    solution = solve(A)
    assert status_name(solution.status) == "nonfinite"
    assert solution.weights.tolist() == [0.0, 0.0, 0.0]
    assert solution.norm == 0


@pytest.mark.parametrize("entry", [-1.0 - 1e-15, 1.0 + 1e-15])
def test_rounding_beyond_a_cosine_of_one_is_harmless(entry: float) -> None:
    solution = solve([[1.0, entry], [entry, 1.0]])
    assert status_name(solution.status) == ("ok" if entry > 0 else "stationary")
    assert bool((solution.weights > 0).all())


def test_status_names() -> None:
    assert status_name(0) == "ok"
    assert status_name(Status.ABSENT | Status.STATIONARY) == "absent|stationary"
    assert status_name(torch.tensor(4, dtype=torch.int32)) == "nonfinite"


# The length of the step


@pytest.mark.parametrize("max_norm", [0.01, 1.0, 1e6])
@pytest.mark.parametrize("normalize", ["none", "simplex", "ball"])
def test_scale_gives_the_direction_its_length(normalize: Normalize, max_norm: float) -> None:
    G = np.random.default_rng(0).normal(size=(3, 20))
    solution = solve_mpd(torch.from_numpy(gram_of(G)), 2.0, normalize, max_norm)
    w = solution.weights.numpy()
    if normalize == "simplex":
        w = w / w.sum()
    d = w @ G
    norm = float(np.linalg.norm(d))
    if normalize == "ball" or norm > max_norm:
        d *= max_norm / norm
    found = float(solution.scale) * solution.weights.numpy() @ G
    np.testing.assert_allclose(found, d, rtol=1e-12)


def test_without_max_norm_nothing_is_clipped() -> None:
    A = torch.diag(torch.tensor([1e20, 1e-20], dtype=torch.float64))
    assert solve_mpd(A).scale == 1.0
    simplex = solve_mpd(A, normalize="simplex")
    assert float(simplex.weights.sum() * simplex.scale) == pytest.approx(1.0)


def test_scale_is_one_where_there_is_no_direction() -> None:
    for A in (np.zeros((2, 2)), np.full((2, 2), math.nan)):
        assert solve_mpd(torch.from_numpy(A), 2.0, "ball", 0.5).scale == 1.0


# The interface


def test_result_types() -> None:
    solution = solve_mpd(torch.eye(3, dtype=torch.float32, requires_grad=True))
    assert solution.weights.shape == (3,)
    assert solution.weights.dtype == solution.norm.dtype == solution.residual.dtype == torch.float64
    assert solution.iterations.dtype == solution.status.dtype == torch.int32
    assert solution.norm.shape == solution.status.shape == ()
    assert not solution.weights.requires_grad


def test_a_solution_reaches_the_host_in_one_piece() -> None:
    solution = solve_mpd(torch.eye(2), normalize="ball", max_norm=0.5)
    assert repr(solution.cpu()) == repr(solution)


def test_float32_is_upcast_and_strides_are_free() -> None:
    A = torch.tensor([[2.0, 0.5, 9.0], [0.5, 1.0, 9.0], [9.0, 9.0, 9.0]], dtype=torch.float32)
    expected = solve(A[:2, :2].double().numpy()).weights
    assert torch.equal(solve_mpd(A[:2, :2]).weights, expected)


@pytest.mark.parametrize(
    ("gram", "alpha", "message"),
    [
        (torch.eye(2, 3, dtype=torch.float64), 2.0, r"square matrix \[K, K\], not \[2, 3\]"),
        (torch.ones(3), 2.0, r"square matrix \[K, K\], not \[3\]"),
        (torch.zeros(0, 0), 2.0, "1 to 16 objectives, not 0"),
        (torch.eye(17), 2.0, "1 to 16 objectives, not 17"),
        (torch.eye(2, dtype=torch.bfloat16), 2.0, "float64 or float32, not torch.bfloat16"),
        (torch.eye(2, dtype=torch.int64), 2.0, "float64 or float32, not torch.int64"),
        (torch.eye(2), 0.4, r"alpha must be in \[0.5, 16\], not 0.4"),
        (torch.eye(2), 17.0, r"alpha must be in \[0.5, 16\]"),
        (torch.eye(2), math.nan, r"alpha must be in \[0.5, 16\], not nan"),
        (torch.tensor([[1.0, 0.5], [0.4, 1.0]]), 2.0, r"not symmetric: gram\[1, 0\] = 0.4"),
        (torch.diag(torch.tensor([1.0, -0.5])), 2.0, r"gram\[1, 1\] = -0.5 is negative"),
    ],
)
def test_wrong_input_is_refused_with_its_reason(
    gram: torch.Tensor, alpha: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        solve_mpd(gram, alpha)


@pytest.mark.parametrize(
    ("normalize", "max_norm", "message"),
    [
        ("ball", None, "give max_norm"),
        ("ball", math.inf, "max_norm must be a number above 0, not inf"),
        ("none", 0.0, "max_norm must be a number above 0, not 0"),
        ("simplex", math.nan, "max_norm must be a number above 0, not nan"),
        ("sphere", 1.0, "none, simplex or ball, not 'sphere'"),
    ],
)
def test_a_wrong_step_length_is_refused(
    normalize: str, max_norm: float | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        solve_mpd(torch.eye(2), normalize=normalize, max_norm=max_norm)  # type: ignore[arg-type]


@pytest.fixture
def no_solver(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have the CPU stand for a card that cannot run the solver: all but the copy is the same."""
    monkeypatch.setattr(mpd, "solves_on", lambda device: False)
    mpd._say_that_the_cpu_solves.cache_clear()
    yield
    mpd._say_that_the_cpu_solves.cache_clear()


def test_where_the_device_has_no_solver_the_cpu_solves_and_that_is_said_once(
    no_solver: None,
) -> None:
    gram = torch.tensor([[4.0, 1.0], [1.0, 9.0]])
    expected = torch.from_numpy(solve_batch(np.array([[[4.0, 1.0], [1.0, 9.0]]]))[0][0])
    with pytest.warns(match="solved for on the CPU, not on cpu: there is no solver for it") as said:
        found = [solve_mpd(gram, normalize="ball", max_norm=2.0) for _ in range(3)]
    assert len(said) == 1
    for solution in found:
        torch.testing.assert_close(solution.weights, expected)
        assert float(solution.scale * solution.norm) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="is not symmetric"):
        solve_mpd(torch.tensor([[1.0, 0.5], [0.0, 1.0]]))


def test_one_rank_of_a_machine_says_that_the_cpu_solves(
    no_solver: None, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    solve_mpd(torch.eye(2))
    assert not recwarn.list


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_a_card_that_is_not_there_cannot_solve_and_says_why() -> None:
    assert not mpd.solves_on(torch.device("cuda"))
    why = mpd.cuda_problem(0) or ""
    assert "built with CUDA" in why or "built without CUDA" in why
