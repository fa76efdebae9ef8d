"""`keep`: against an explicit rotation of gradient vectors, and what never changes it.

The gradients are integers times a power of two, so that their Gram matrix has no rounding: then
what the vectors show is what the matrix promises.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import mpmath
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fairhuman import _C
from fairhuman.fairness.mpd import MPDSolution, Normalize, Status, keep_mpd, solve_mpd, status_name
from fairhuman.fairness.solve import Solver

Array = NDArray[np.float64]
EPS = float(np.finfo(np.float64).eps)
KEEPS = (0.05, 0.5, 0.9, 0.99, 0.9999)


def exact_gradients(
    rng: np.random.Generator, N: int, K: int, kind: str = "mixed"
) -> tuple[Array, Array]:
    """[N, K, K + 4] and their Gram matrices, without rounding.

    Norms from 1e-8 to 1e8 in one matrix; half with cosines to +-0.9999. In kind `conflict`, the
    last gradient is minus a positive combination of the others; in `near` it almost is.
    """
    G = rng.normal(size=(N, K, K + 4)) * 10.0 ** rng.uniform(-2, 0, size=(N, 1, 1))
    signs = rng.choice([-1, 1], size=(N, K, 1)) * (rng.uniform(size=(N, 1, 1)) < 0.5)
    G += signs * rng.normal(size=(N, 1, K + 4))
    G = np.rint(G / np.linalg.norm(G, axis=2, keepdims=True) * 2**19)
    if kind != "mixed":
        G[:, -1] = -(rng.integers(1, 3, size=(N, K - 1, 1)) * G[:, :-1]).sum(axis=1)
    if kind == "near":
        G[:, -1] += rng.integers(-20, 21, size=G[:, -1].shape)
    A = G @ G.transpose(0, 2, 1)
    assert np.abs(A).max() < 2**53
    size = 2.0 ** rng.integers(-46, 9, size=(N, K, 1))
    return G * size, np.ascontiguousarray(A * size * size.transpose(0, 2, 1))


@dataclass
class Solved:
    """A native batch."""

    w: Array
    norm: Array
    scale: Array
    cosine: Array
    status: NDArray[np.int64]


def solve_batch(A: Array, keep: float, alpha: float = 2.0, anchor: int = 0) -> Solved:
    N, K, _ = A.shape
    out = np.empty((N, K + 6))
    length = (2, 0.5, keep, anchor)
    _C.solve_mpd_cpu(A.ctypes.data, N, K, alpha, 1e-7, *length, out.ctypes.data)
    norm, _, scale, cosine, _, status = out[:, K:].T
    return Solved(out[:, :K], norm, scale, cosine, status.astype(int))


def solve(A: Array | list[list[float]], keep: float, anchor: int = 0) -> MPDSolution:
    return solve_mpd(torch.tensor(np.asarray(A)), keep=keep, anchor=anchor)


def gram_of(G: Array) -> Array:
    return np.asarray(G @ np.swapaxes(G, -1, -2))


def explicit(w: Array, G: Array) -> mpmath.matrix:
    """sum_k w_k g_k, to 60 digits."""
    columns = G.T.tolist()
    return [mpmath.fdot(w.tolist(), column) for column in columns]


def length(x: list[mpmath.mpf]) -> mpmath.mpf:
    return mpmath.sqrt(mpmath.fdot(x, x))


def rotated(d0: list[mpmath.mpf], g: list[mpmath.mpf], keep: float) -> list[mpmath.mpf]:
    """The unit direction of d0, turned towards g until its angle to it is arccos(keep).

    On the sphere the nearest point of a cap is on the great circle through the cap's centre.
    """
    size, gsize = length(d0), length(g)
    start, pole = [x / size for x in d0], [x / gsize for x in g]
    cosine = mpmath.fdot(start, pole)
    if cosine >= keep:
        return start
    angle = mpmath.acos(cosine)
    turn = angle - mpmath.acos(keep)
    return [
        (mpmath.sin(angle - turn) * x + mpmath.sin(turn) * y) / mpmath.sin(angle)
        for x, y in zip(start, pole, strict=True)
    ]


def assert_nearest(G: Array, A: Array, keep: float, alpha: float) -> tuple[int, int]:
    """Return how many directions were bounded, and of how many w allows 1e-12."""
    K = G.shape[1]
    fair, kept = solve_batch(A, 0.0, alpha), solve_batch(A, keep, alpha)
    assert np.array_equal(fair.w[:, 1:], kept.w[:, 1:])
    assert (kept.w[:, 0] >= fair.w[:, 0]).all()
    bounded = (kept.status & Status.KEPT) != 0
    assert np.array_equal(kept.status & ~Status.KEPT, fair.status)
    for field in ("w", "norm", "scale", "cosine"):
        same = getattr(kept, field)[~bounded], getattr(fair, field)[~bounded]
        assert np.array_equal(*same)
    np.testing.assert_allclose(kept.scale * kept.norm, 0.5, rtol=1e-15)
    sharp = 0
    for n in range(len(G)):
        g = [mpmath.mpf(x) for x in G[n, 0].tolist()]
        d = explicit(kept.w[n], G[n])
        size, anchor_size = length(d), length(g)
        cosine = mpmath.fdot(d, g) / size / anchor_size
        assert cosine >= keep - 8 * EPS
        if kept.status[n] & Status.STATIONARY:
            # Its own direction is rounding: the length is that of an upper bound of it.
            assert size <= kept.norm[n] * (1 + 1e-9)
            assert kept.cosine[n] >= keep
            assert kept.cosine[n] <= cosine + 1e-6
            continue
        # What the rounding of w_0 does, and what b may have been raised by: (4) of csrc/mpd_keep.h.
        sizes = kept.w[n] * np.sqrt(np.diag(A[n]))
        parts = sizes / float(size)
        room = float(2 * EPS * parts[0] + K**4 * 2.0**-100 * parts[1:].sum() ** 2)
        assert float(abs(kept.cosine[n] - cosine)) <= 8 * EPS + room
        # A fair direction's norm is that of the equation which it solves to rounding.
        rounding = room if bounded[n] else 8 * K * EPS * parts.sum() ** 2
        assert float(abs(kept.norm[n] / size - 1)) <= 8 * EPS + rounding
        if bounded[n]:
            assert float(cosine - keep) <= 8 * EPS + room
            sharp += room < 1e-12
            if room < 1e-12:
                assert float(abs(cosine - keep)) <= 1e-12
        target = rotated(explicit(fair.w[n], G[n]), g, keep)
        apart = length([x / size - y for x, y in zip(d, target, strict=True)])
        assert float(apart) <= (8 * EPS + room) / math.sqrt(1 - keep**2)
    return int(bounded.sum()), sharp


def assert_all_nearest(K: int, N: int) -> None:
    rng = np.random.default_rng(K)
    bounded = sharp = 0
    with mpmath.workdps(60):
        for keep in KEEPS:
            for alpha in (0.5, 1.0, 2.0, 2.0, 16.0):
                for kind, share in (("mixed", 3), ("near", 1), ("conflict", 1)):
                    if K == 1 and kind != "mixed":
                        continue
                    gradients = exact_gradients(rng, N * share, K, kind)
                    found = assert_nearest(*gradients, keep, alpha)
                    bounded, sharp = bounded + found[0], sharp + found[1]
    if K > 1:
        assert bounded > 20 * N
        assert sharp > 0.3 * bounded


@pytest.mark.parametrize("K", range(1, 9))
def test_the_direction_is_the_nearest_that_keeps_enough(K: int) -> None:
    assert_all_nearest(K, 1)


@pytest.mark.slow
@pytest.mark.parametrize("K", range(1, 9))
def test_ten_thousand_directions_are_the_nearest_that_keep_enough(K: int) -> None:
    assert_all_nearest(K, 10)


def test_no_direction_that_keeps_enough_is_nearer() -> None:
    """Against thousands of others of the cone, most of them at its edge, near and far."""
    rng = np.random.default_rng(0)
    G, A = exact_gradients(rng, 20, 4)
    for keep in KEEPS:
        fair, kept = solve_batch(A, 0.0), solve_batch(A, keep)
        for n in range(len(G)):
            d0, d = fair.w[n] @ G[n], kept.w[n] @ G[n]
            d0, d = d0 / np.linalg.norm(d0), d / np.linalg.norm(d)
            pole = G[n, 0] / np.linalg.norm(G[n, 0])
            others = d + rng.normal(size=(3000, len(d))) * 10.0 ** rng.uniform(
                -4, 1, size=(3000, 1)
            )
            aside = others - (others @ pole)[:, None] * pole
            aside /= np.linalg.norm(aside, axis=1, keepdims=True)
            angle = math.acos(keep) * np.where(
                rng.uniform(size=3000) < 0.9, 1.0, rng.uniform(size=3000)
            )
            others = np.cos(angle)[:, None] * pole + np.sin(angle)[:, None] * aside
            assert (others @ d0).max() <= d @ d0 + 1e-12


# What does not change it


def well_behaved(rng: np.random.Generator, N: int, K: int) -> Array:
    G = rng.normal(size=(N, K, K + 4)) + 0.5 * rng.normal(size=(N, 1, K + 4))
    return G * 10.0 ** rng.uniform(-3, 3, size=(N, K, 1))


def directions(solved: Solved, G: Array) -> Array:
    d = np.einsum("nk,nkp->np", solved.w / solved.w.max(axis=1, keepdims=True), G)
    return np.asarray(d / np.linalg.norm(d, axis=1, keepdims=True))


@pytest.mark.parametrize("size", [1e-140, 1e-9, 3.0, 1e140])
def test_the_scale_of_all_gradients_does_not_matter(size: float) -> None:
    G = well_behaved(np.random.default_rng(0), 200, 3)
    once, scaled = (solve_batch(gram_of(x), 0.9) for x in (G, G * size))
    np.testing.assert_allclose(directions(scaled, G), directions(once, G), atol=1e-11)
    np.testing.assert_allclose(scaled.cosine, once.cosine, rtol=1e-12)
    assert np.array_equal(scaled.status, once.status)


@pytest.mark.parametrize("anchor", [0, 2, 4])
def test_the_order_of_the_objectives_does_not_matter(anchor: int) -> None:
    rng = np.random.default_rng(1)
    G = well_behaved(rng, 200, 5)
    once = solve_batch(gram_of(G), 0.9, anchor=anchor)
    order = rng.permutation(5)
    moved = solve_batch(gram_of(G[:, order]), 0.9, anchor=int(np.flatnonzero(order == anchor)[0]))
    np.testing.assert_allclose(moved.w, once.w[:, order], rtol=1e-11)
    np.testing.assert_allclose(moved.cosine, once.cosine, rtol=1e-12)
    assert np.array_equal(moved.status, once.status)


def test_what_keeps_enough_is_left_as_it_was_to_the_bit() -> None:
    for K in range(1, 9):
        _, A = exact_gradients(np.random.default_rng(K), 300, K)
        fair = solve_batch(A, 0.0)
        assert not (fair.status & Status.KEPT).any()
        enough = fair.cosine > 0.9
        kept = solve_batch(np.ascontiguousarray(A[enough]), 0.9)
        for field in ("w", "norm", "scale", "cosine", "status"):
            assert np.array_equal(getattr(kept, field), getattr(fair, field)[enough])


@pytest.mark.parametrize("kind", ["mixed", "near", "conflict"])
def test_keeping_more_never_keeps_less(kind: str) -> None:
    for K in range(2, 9):
        _, A = exact_gradients(np.random.default_rng(K), 100, K, kind)
        steps = [solve_batch(A, keep) for keep in (0.0, *np.linspace(0.01, 0.99, 30), 1 - 1e-9)]
        for less, more in itertools.pairwise(steps):
            assert (more.cosine >= less.cosine - 4 * EPS).all()
            assert (more.w[:, 0] >= less.w[:, 0]).all()
            assert (more.status >= less.status).all()


# What is absent, opposed, tiny, huge or broken


def test_an_absent_anchor_keeps_nothing() -> None:
    A = np.diag([0.0, 4.0, 1.0])
    found = solve(A, 0.9)
    assert status_name(found.status) == "absent"
    assert math.isnan(found.cosine)
    assert torch.equal(found.weights, solve(A, 0.0).weights)


@pytest.mark.parametrize("A", [[[4.0]], [[4.0, 0.0], [0.0, 0.0]]])
def test_alone_the_anchor_has_the_whole_direction(A: list[list[float]]) -> None:
    found = solve(A, 0.999)
    assert found.cosine == 1.0
    assert not int(found.status) & Status.KEPT
    assert torch.equal(found.weights, solve(A, 0.0).weights)


def test_an_absent_objective_is_as_if_it_were_not_there() -> None:
    A = np.array([[1.0, 0.1, 0.0], [0.1, 4.0, 0.0], [0.0, 0.0, 0.0]])
    found, alone = solve(A, 0.9), solve(A[:2, :2], 0.9)
    assert status_name(found.status) == "absent|kept"
    assert torch.equal(found.weights[:2], alone.weights)
    assert found.cosine == alone.cosine
    assert found.norm == alone.norm


def test_orthogonal_gradients_have_a_closed_form() -> None:
    """a = b = 1: the weight grows by keep / sqrt(1 - keep^2) - 1."""
    found = solve([[1.0, 0.0], [0.0, 1.0]], 0.8)
    assert status_name(found.status) == "kept"
    assert found.weights.tolist() == pytest.approx([4 / 3, 1.0], rel=1e-15)
    assert float(found.norm) == pytest.approx(5 / 3, rel=1e-15)
    assert float(found.cosine) == pytest.approx(0.8, rel=1e-15)


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("size", [1e-8, 1.0, 1e8])
def test_in_exact_conflict_the_anchor_wins(keep: float, size: float) -> None:
    """(g, -g): d is a small multiple of g, of which the norm is an upper bound."""
    G = np.array([[1.0, 2.0], [-size, -2.0 * size]])
    found = solve(gram_of(G), keep)
    assert status_name(found.status) == "stationary|kept"
    d = found.weights.numpy() @ G
    assert d @ G[0] > 0
    assert np.linalg.norm(d) <= float(found.norm)
    assert float(found.cosine) >= keep


@pytest.mark.parametrize("first", [1e-150, 1e-8, 1.0, 1e8, 1e150])
@pytest.mark.parametrize("second", [1e-150, 1e-8, 1.0, 1e8, 1e150])
def test_norms_may_be_tiny_or_huge(first: float, second: float) -> None:
    correlation = np.array([[1.0, -0.5], [-0.5, 1.0]])
    A = correlation * np.outer([first, second], [first, second])
    found = solve(A, 0.9)
    v = found.weights.numpy() * [first, second]
    assert np.isfinite(v).all()
    cosine = (v[0] - 0.5 * v[1]) / math.sqrt(v[0] ** 2 - v[0] * v[1] + v[1] ** 2)
    assert cosine >= 0.9 - 1e-12
    assert float(found.cosine) == pytest.approx(cosine, rel=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_has_no_cosine(bad: float) -> None:
    A = np.eye(3)
    A[1, 1] = bad
    found = solve(A, 0.9)
    assert status_name(found.status) == "nonfinite"
    assert found.weights.tolist() == [0.0, 0.0, 0.0]
    assert math.isnan(found.cosine)
    assert not found.solved
    assert solve(np.eye(3), 0.9).solved


@pytest.mark.parametrize(
    ("keep", "anchor", "message"),
    [
        (1.0, 0, r"keep must be in \[0, 1\), not 1"),
        (-0.1, 0, r"keep must be in \[0, 1\), not -0.1"),
        (math.nan, 0, r"keep must be in \[0, 1\), not nan"),
        (0.5, 2, "anchor must be one of the 2 objectives, not 2"),
        (0.5, -1, "anchor must be one of the 2 objectives, not -1"),
    ],
)
def test_a_bound_that_cannot_be_is_refused(keep: float, anchor: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        solve(np.eye(2), keep, anchor)


# Weights of another matrix, and the run's solver


@pytest.mark.parametrize("kind", ["mixed", "near"])
def test_given_weights_are_bounded_as_those_of_the_solver(kind: str) -> None:
    _, A = exact_gradients(np.random.default_rng(3), 50, 4, kind)
    for gram in torch.from_numpy(A):
        fair, expected = solve_mpd(gram), solve_mpd(gram, keep=0.9)
        if int(fair.status) == Status.OK:
            fair._row[-6] = 0.0  # nothing is held for rounding
            found = keep_mpd(gram, fair, 0.9)
            assert torch.equal(found.weights, expected.weights)
            assert found.cosine == expected.cosine
            assert found.status == expected.status


@pytest.mark.parametrize("normalize", ["ball", "simplex", "none"])
def test_with_a_floor_the_bound_is_that_of_the_true_gradients(normalize: Normalize) -> None:
    G, A = exact_gradients(np.random.default_rng(4), 200, 3)
    bounded = 0
    for rows, gram in zip(torch.from_numpy(G), torch.from_numpy(A), strict=True):
        fair = Solver(normalize=normalize, max_norm=0.5, floor=0.3)(gram)
        kept = Solver(normalize=normalize, max_norm=0.5, floor=0.3, keep=0.9)(gram)
        d = kept.weights @ rows
        cosine = float(d @ rows[0] / d.norm() / rows[0].norm())
        assert cosine >= 0.9 - 1e-9
        assert float(kept.cosine) == pytest.approx(cosine, abs=1e-9)
        assert float(kept.norm) == pytest.approx(float(d.norm()), rel=1e-6)
        assert float(kept.scale * d.norm()) <= 0.5 * (1 + 1e-6)
        if int(kept.status) & Status.KEPT:
            bounded += 1
            assert cosine == pytest.approx(0.9, abs=1e-9)
            assert torch.equal(kept.weights[1:], fair.weights[1:])
        else:
            assert torch.equal(kept._row, fair._row)
    assert bounded > 50


def test_a_floor_in_exact_conflict_does_not_blow_up_rounding() -> None:
    gram = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    for keep in (0.0, 0.9):
        found = Solver(max_norm=1.0, floor=0.5, keep=keep)(gram)
        assert float(found.scale) <= 1e6
        assert float(found.weights[0] - found.weights[1]) * float(found.scale) <= 1.0
