"""Objective weights from a Gram matrix: Minimum Potential Delay and its alpha-fair family.

For the gradients ``g_k`` of K objectives and their Gram matrix ``A = [<g_i, g_j>]``, the weights
are the unique ``w > 0`` with ``A w = w^(-1/alpha)``: the stationarity condition of the
alpha-fair utility of the direction ``d = sum_k w_k g_k``. ``alpha = 2`` is the Minimum Potential
Delay criterion of FairHuman (arXiv 2507.02714), ``alpha = 1`` proportional fairness (Nash).
The solver itself is native: csrc/mpd.h.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from math import isfinite

import torch
from torch import Tensor

from fairhuman import _C

MAX_OBJECTIVES = 16
MIN_ALPHA = 0.5
MAX_ALPHA = 16.0

# What two entries A_ij and A_ji may differ by, relative to sqrt(A_ii A_jj): the rounding of a long
# dot product in the matrix's dtype.
_ASYMMETRY = {torch.float32: 1e-3, torch.float64: 1e-7}


class Status(IntFlag):
    """What a solve met with; the flags combine."""

    OK = 0
    ABSENT = 1
    """Some ``A_kk`` is 0: its weight is 0, and the others are solved without it."""
    STATIONARY = 2
    """The objectives are in exact conflict; solved with a small ridge relative to A's diagonal."""
    NONFINITE = 4
    """NaN or inf in A: every weight is 0, and the step should be skipped."""


def status_name(status: int | Tensor) -> str:
    """Name a status for logs: ``"ok"``, ``"absent"``, ``"absent|stationary"``, ...

    Reading a CUDA tensor waits for the device.
    """
    flags = Status(int(status))
    names = [flag.name.lower() for flag in Status if flag and flag in flags and flag.name]
    return "|".join(names) or "ok"


@dataclass(frozen=True)
class MPDSolution:
    """The weights of one Gram matrix, on its device; the scalars are tensors of shape [].

    Attributes:
        weights: [K] float64. 0 for an absent objective; all 0 if the matrix was not finite.
        norm: float64, ``||d|| = sqrt(sum_k w_k^(1 - 1/alpha))`` over the present objectives. For a
            stationary matrix it is an upper bound of ``||d||`` (the norm under the regularised
            matrix), so that scaling d by it never blows up what is only rounding.
        residual: float64, the componentwise backward error
            ``max_i |(Aw)_i - w_i^(-1/alpha)| / ((|A|w)_i + w_i^(-1/alpha))``: the relative change
            of A and the right-hand side under which w is exact. A few 1e-16 when solved, however
            hard the matrix; for a stationary one, of the regularised system; 0 if nothing was
            there to solve.
        iterations: int32, Newton steps.
        status: int32, the bits of `Status`.
    """

    weights: Tensor
    norm: Tensor
    residual: Tensor
    iterations: Tensor
    status: Tensor


def solve_mpd(gram: Tensor, alpha: float = 2.0) -> MPDSolution:
    """Solve ``A w = w^(-1/alpha)`` for ``w > 0`` (arXiv 2507.02714, the MPD criterion).

    Exact cases return a status instead of raising, so that all ranks of a run can act alike: an
    absent objective, exact conflict, NaN or inf (see `Status`).

    Args:
        gram: [K, K] Gram matrix, float64 (or float32, which is upcast), K from 1 to 16. Its scale
            is free, and so are the scales of its objectives against each other.
        alpha: the fairness exponent, 0.5 to 16. Larger is closer to max-min fairness.

    Raises:
        ValueError: gram is not [K, K], K is outside 1..16, its dtype is not float32 or float64, it
            is asymmetric or has a negative diagonal beyond rounding, or alpha is out of range.
        NotImplementedError: gram is on a device that this build has no solver for.
    """
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1]:
        raise ValueError(f"gram must be a square matrix [K, K], not {list(gram.shape)}")
    K = gram.shape[0]
    if not 1 <= K <= MAX_OBJECTIVES:
        raise ValueError(f"gram must have 1 to {MAX_OBJECTIVES} objectives, not {K}")
    if gram.dtype not in _ASYMMETRY:
        raise ValueError(f"gram must be float64 or float32, not {gram.dtype}")
    if not MIN_ALPHA <= alpha <= MAX_ALPHA:  # also refuses NaN
        raise ValueError(f"alpha must be in [{MIN_ALPHA:g}, {MAX_ALPHA:g}], not {alpha:g}")
    if gram.device.type != "cpu":
        raise NotImplementedError(
            f"the {gram.device.type.upper()} solver is not in this build: pass gram.cpu()"
        )
    _check_symmetry(gram, _ASYMMETRY[gram.dtype])

    matrix = gram.detach().to(torch.float64).contiguous()
    # Two buffers instead of five: allocations are most of a small solve's time.
    values = torch.empty(K + 2, dtype=torch.float64)
    counts = torch.empty(2, dtype=torch.int32)
    at, counts_at = values.data_ptr(), counts.data_ptr()
    _C.solve_mpd_cpu(
        gram=matrix.data_ptr(),
        count=1,
        K=K,
        alpha=alpha,
        weights=at,
        norm=at + 8 * K,
        residual=at + 8 * (K + 1),
        iterations=counts_at,
        status=counts_at + 4,
    )
    return MPDSolution(values[:K], values[K], values[K + 1], counts[0], counts[1])


def _check_symmetry(gram: Tensor, tolerance: float) -> None:
    """Refuse what cannot be a Gram matrix; NaN and inf pass, for they have a status."""
    rows = gram.tolist()
    if not all(isfinite(value) for row in rows for value in row):
        return
    diagonal = [row[i] for i, row in enumerate(rows)]
    largest = max(diagonal)
    for i, row in enumerate(rows):
        if diagonal[i] < -tolerance * abs(largest):
            raise ValueError(
                f"gram[{i}, {i}] = {diagonal[i]:g} is negative: no Gram matrix has that"
            )
        for j in range(i):
            bound = tolerance * (max(diagonal[i], 0.0) * max(diagonal[j], 0.0)) ** 0.5
            if abs(row[j] - rows[j][i]) > bound:
                raise ValueError(
                    f"gram is not symmetric: gram[{i}, {j}] = {row[j]:g}, "
                    f"gram[{j}, {i}] = {rows[j][i]:g}"
                )
