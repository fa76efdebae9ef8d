"""Objective weights from a Gram matrix: Minimum Potential Delay and its alpha-fair family.

For the gradients ``g_k`` of K objectives and their Gram matrix ``A = [<g_i, g_j>]``, the weights
are the unique ``w > 0`` with ``A w = w^(-1/alpha)``: the stationarity condition of the
alpha-fair utility of the direction ``d = sum_k w_k g_k``. ``alpha = 2`` is the Minimum Potential
Delay criterion of FairHuman (arXiv 2507.02714), ``alpha = 1`` proportional fairness (Nash).
The solver itself is native: csrc/mpd.h.
"""

from __future__ import annotations

import math
import os
import warnings
from enum import IntFlag
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from fairhuman import _C
from fairhuman.common.transfer import to_device

_SOLVER = _C.build_info()
MAX_OBJECTIVES = _SOLVER["mpd_max_objectives"]
MIN_ALPHA = _SOLVER["mpd_min_alpha"]
MAX_ALPHA = _SOLVER["mpd_max_alpha"]
_FIELDS = _SOLVER["mpd_fields"]

Normalize = Literal["none", "simplex", "ball"]
_NORMALIZE = {"none": 0, "simplex": 1, "ball": 2}  # MpdNormalize in csrc/mpd.h

# What two entries A_ij and A_ji may differ by, relative to sqrt(A_ii A_jj): the rounding of a long
# dot product in the matrix's dtype.
_ASYMMETRY = {torch.float32: 1e-3, torch.float64: 1e-7}


class Status(IntFlag):
    """What a solve met with; the flags combine."""

    OK = 0
    ABSENT = 1
    """Some ``A_kk`` is 0: its weight is 0, and the others are solved without it."""
    STATIONARY = 2
    """The objectives are in exact conflict; solved with a small ridge relative to A's diagonal.
    Where the rule's direction there is 0 (see `rules`), every weight is."""
    NONFINITE = 4
    """NaN or inf in A, or no finite weights: every weight is 0, and the step should be skipped."""
    INVALID = 8
    """No Gram matrix: asymmetric, or a negative diagonal, beyond rounding; every weight is 0.
    Only a CUDA tensor gets this status, for raising would make the host wait; a CPU tensor
    raises."""
    KEPT = 16
    """`keep` has raised the anchor's weight: the fair direction would have kept less of it."""


def status_name(status: int | Tensor) -> str:
    """Name a status for logs: ``"ok"``, ``"absent"``, ``"absent|stationary"``, ...

    Reading a CUDA tensor waits for the device.
    """
    flags = Status(int(status))
    names = [flag.name.lower() for flag in Status if flag and flag in flags and flag.name]
    return "|".join(names) or "ok"


class MPDSolution:
    """The weights of one Gram matrix, on its device; the scalars are tensors of shape [].

    What is said of norm and residual is that of `solve_mpd`. With weights by another rule, the norm
    is that of d by the matrix, but at least a millionth of sum_k |w_k| ||g_k||, for below that it
    is rounding; the residual is NaN, and the iterations are 0.

    All of it is one tensor, so that `tolist` brings it to the host in one copy.

    Attributes:
        weights: [K] float64. 0 for an absent objective; all 0 if the matrix was not finite.
        norm: float64, ``||d|| = sqrt(sum_k w_k^(1 - 1/alpha))`` over the present objectives. For a
            stationary matrix it is an upper bound of ``||d||`` (the norm under the regularised
            matrix), so that scaling d by it never blows up what is only rounding. With `keep`, of
            the direction that is kept.
        residual: float64, the componentwise backward error
            ``max_i |(Aw)_i - w_i^(-1/alpha)| / ((|A|w)_i + w_i^(-1/alpha))``: the relative change
            of A and the right-hand side under which w is exact. A few 1e-16 when solved, however
            hard the matrix; for a stationary one, of the regularised system; 0 if nothing was
            there to solve.
        scale: float64, the factor on d that `normalize` and `max_norm` of `solve_mpd` ask for.
        cosine: float64, of d to the gradient of `anchor`, by the matrix; NaN if it is absent. For a
            stationary matrix it is at least so much.
        iterations: int32, Newton steps.
        status: int32, the bits of `Status`.
    """

    __slots__ = ("_row",)

    def __init__(self, row: Tensor) -> None:
        self._row = row

    @classmethod
    def of(
        cls,
        weights: Tensor,
        *,
        norm: Tensor | float,
        residual: Tensor | float,
        scale: Tensor | float,
        cosine: Tensor | float,
        iterations: Tensor | float,
        status: Tensor | float,
    ) -> MPDSolution:
        """Return a solution of these weights, float64, and scalars."""
        fields = (norm, residual, scale, cosine, iterations, status)  # as in the native rows
        # Filled on the device: a number that is copied there makes the host wait.
        scalars = [f if isinstance(f, Tensor) else weights.new_full((), f) for f in fields]
        return cls(torch.cat([weights, torch.stack([scalar.double() for scalar in scalars])]))

    @classmethod
    def none(cls, count: int) -> MPDSolution:
        """Return, on the host, that there are no weights for `count` objectives."""
        return cls.of(
            torch.zeros(count, dtype=torch.float64),
            norm=0.0,
            residual=0.0,
            scale=1.0,
            cosine=math.nan,
            iterations=0,
            status=Status.NONFINITE,
        )

    @property
    def weights(self) -> Tensor:  # noqa: D102
        return self._row[:-_FIELDS]

    @property
    def norm(self) -> Tensor:  # noqa: D102
        return self._row[-_FIELDS]

    @property
    def residual(self) -> Tensor:  # noqa: D102
        return self._row[1 - _FIELDS]

    @property
    def scale(self) -> Tensor:  # noqa: D102
        return self._row[2 - _FIELDS]

    @property
    def cosine(self) -> Tensor:  # noqa: D102
        return self._row[3 - _FIELDS]

    @property
    def iterations(self) -> Tensor:  # noqa: D102
        return self._row[4 - _FIELDS].to(torch.int32)

    @property
    def status(self) -> Tensor:  # noqa: D102
        return self._row[5 - _FIELDS].to(torch.int32)

    @property
    def solved(self) -> Tensor:
        """Bool: there are weights. Where not (`NONFINITE`, `INVALID`), the step must be skipped."""
        return self.status & int(Status.NONFINITE | Status.INVALID) == 0

    def cpu(self) -> MPDSolution:
        """Return the solution on the host, in one copy that waits for the device."""
        return MPDSolution(self._row.cpu())

    def to(self, device: torch.device) -> MPDSolution:
        """Return the solution on a device; the host does not wait for the copy."""
        return MPDSolution(to_device(self._row, device))

    def __repr__(self) -> str:
        return (
            f"MPDSolution(weights={self.weights}, norm={self.norm}, residual={self.residual}, "
            f"scale={self.scale}, cosine={self.cosine}, iterations={self.iterations}, "
            f"status={self.status})"
        )


def solve_mpd(
    gram: Tensor,
    alpha: float = 2.0,
    normalize: Normalize = "none",
    max_norm: float | None = None,
    keep: float = 0.0,
    anchor: int = 0,
) -> MPDSolution:
    """Solve ``A w = w^(-1/alpha)`` for ``w > 0`` (arXiv 2507.02714, the MPD criterion).

    On a CUDA device this is one kernel on the current stream: nothing waits for the device, and a
    CUDA graph can capture it. Where the device or this build cannot run it (see `cuda_problem`),
    the matrix is solved on the CPU, which waits for the device; a warning says so once.

    Exact cases return a status instead of raising, so that all ranks do the same: an absent
    objective, exact conflict, NaN or inf (see `Status`).

    Args:
        gram: [K, K] Gram matrix, float64 (or float32, which is upcast), K from 1 to 16. Its scale
            is free, and so are the scales of its objectives against each other.
        alpha: the fairness exponent, 0.5 to 16. Larger is closer to max-min fairness.
        normalize: the length of the step, as a factor ``scale`` on d: "ball" gives d the norm
            `max_norm`, up or down (the paper's trust region); "simplex" makes the weights sum
            to 1; "none" leaves them. Known from the solution, it costs no pass over a gradient.
        max_norm: d is clipped to this norm; None does not clip.
        keep: the least cosine of d to the gradient of `anchor`, from 0 (no bound) to below 1. Where
            the fair direction has less, d is the direction nearest to it by angle that has so much:
            the anchor's weight grows, the others stay (`Status.KEPT`). An objective whose gradient
            conflicts with the anchor's may then get worse: (A w)_k < 0.
        anchor: an objective; if it is absent, there is no bound.

    Raises:
        ValueError: gram is not [K, K], K is outside 1..16, its dtype is not float32 or float64, it
            is asymmetric or has a negative diagonal beyond rounding (solved on the CPU; else see
            `Status.INVALID`), alpha, max_norm, keep or anchor is out of range, normalize is
            unknown, or it is "ball" without max_norm.
        RuntimeError: CUDA refused the launch.
    """
    K, tolerance = _check_gram(gram)
    if not MIN_ALPHA <= alpha <= MAX_ALPHA:  # also refuses NaN
        raise ValueError(f"alpha must be in [{MIN_ALPHA:g}, {MAX_ALPHA:g}], not {alpha:g}")
    check_length(normalize, max_norm)
    _check_keep(keep, anchor, K)

    matrix = _where_it_is_solved(gram)
    row = matrix.new_empty(K + _FIELDS)
    limit = math.inf if max_norm is None else max_norm
    length = (_NORMALIZE[normalize], limit, keep, anchor)
    problem = (matrix.data_ptr(), 1, K, alpha, tolerance, *length, row.data_ptr())
    if matrix.is_cpu:
        if _C.solve_mpd_cpu(*problem) & Status.INVALID:
            _refuse_invalid(gram.tolist(), tolerance)
    else:
        stream = torch.cuda.current_stream(gram.device)
        _C.solve_mpd_cuda(stream.device_index, stream.cuda_stream, *problem)
    return MPDSolution(row.to(gram.device))


def keep_mpd(gram: Tensor, solution: MPDSolution, keep: float, anchor: int = 0) -> MPDSolution:
    """Bound weights that are not of this matrix as `solve_mpd` bounds its own; `scale` stays.

    Args:
        gram: [K, K] Gram matrix, float64.
        solution: the weights; its norm is what ||d|| is at least taken for, for below it d is
            rounding.
        keep: the least cosine of d to the gradient of `anchor`.
        anchor: an objective.

    Returns:
        The solution with its cosine and, where the bound has changed it, another norm.
    """
    K = gram.shape[0]
    _check_keep(keep, anchor, K)
    matrix = _where_it_is_solved(gram)
    row = solution._row.to(matrix.device, copy=True)
    problem = (matrix.data_ptr(), 1, K, keep, anchor, row.data_ptr())
    if matrix.is_cpu:
        _C.keep_mpd_cpu(*problem)
    else:
        stream = torch.cuda.current_stream(gram.device)
        _C.keep_mpd_cuda(stream.device_index, stream.cuda_stream, *problem)
    return MPDSolution(row.to(gram.device))


def solves_on(device: torch.device) -> bool:
    """Return whether the device solves itself; else its matrices go to the CPU."""
    return device.type == "cpu" or (device.type == "cuda" and cuda_problem(device.index) is None)


@cache
def cuda_problem(index: int | None) -> str | None:
    """Return why a CUDA device (None: the current one) cannot run the solver; None if it can.

    This build has no CUDA, the driver is older than the runtime that was built with, or the card
    is of an architecture that there is no code for.
    """
    if not hasattr(_C, "cuda_problem"):
        return "fairhuman._C was built without CUDA: reinstall fairhuman where nvcc is found"
    if index is None:
        index = torch.cuda.current_device() if torch.cuda.is_available() else 0
    return _C.cuda_problem(index)


def check_length(normalize: Normalize, max_norm: float | None) -> None:
    """Check what a step's length follows from; see `solve_mpd`.

    Raises:
        ValueError: normalize is unknown, max_norm is out of range, or missing for "ball".
    """
    if normalize not in _NORMALIZE:
        raise ValueError(f"normalize must be none, simplex or ball, not {normalize!r}")
    if max_norm is None:
        if normalize == "ball":
            raise ValueError("normalize='ball' scales d to max_norm: give max_norm")
    elif not 0.0 < max_norm < math.inf:
        raise ValueError(f"max_norm must be a number above 0, not {max_norm:g}")


def host_matrix(gram: Tensor) -> Tensor:
    """Return a Gram matrix on the host, [K, K] float64; waits for the device.

    Raises:
        ValueError: as `solve_mpd` of a matrix on the CPU.
    """
    _, tolerance = _check_gram(gram)
    matrix = gram.detach().cpu().double()
    if bool(matrix.isfinite().all()):
        _refuse_invalid(matrix.tolist(), tolerance)
    return matrix


def _check_gram(gram: Tensor) -> tuple[int, float]:
    """Return K, and the asymmetry that rounding may leave."""
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1]:
        raise ValueError(f"gram must be a square matrix [K, K], not {list(gram.shape)}")
    K = gram.shape[0]
    if not 1 <= K <= MAX_OBJECTIVES:
        raise ValueError(f"gram must have 1 to {MAX_OBJECTIVES} objectives, not {K}")
    tolerance = _ASYMMETRY.get(gram.dtype)
    if tolerance is None:
        raise ValueError(f"gram must be float64 or float32, not {gram.dtype}")
    return K, tolerance


def _check_keep(keep: float, anchor: int, count: int) -> None:
    if not 0.0 <= keep < 1.0:  # also refuses NaN
        raise ValueError(f"keep must be in [0, 1), not {keep:g}")
    if not 0 <= anchor < count:
        raise ValueError(f"anchor must be one of the {count} objectives, not {anchor}")


def _where_it_is_solved(gram: Tensor) -> Tensor:
    """Return the matrix as the native code takes it, on the device that solves it."""
    matrix = gram.detach()
    if not solves_on(gram.device):
        _say_that_the_cpu_solves(gram.device)
        matrix = matrix.cpu()
    return matrix.to(torch.float64).contiguous()


@cache
def _say_that_the_cpu_solves(device: torch.device) -> None:
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return  # a machine's ranks would say the same
    why = cuda_problem(device.index) if device.type == "cuda" else "there is no solver for it"
    warnings.warn(f"weights are solved for on the CPU, not on {device}: {why}", stacklevel=4)


def _refuse_invalid(rows: list[list[float]], tolerance: float) -> None:
    """Raise for what is no Gram matrix, naming the entry."""
    diagonal = [row[i] for i, row in enumerate(rows)]
    for i, value in enumerate(diagonal):
        if value < -tolerance * max(*diagonal, 0.0):
            raise ValueError(f"gram[{i}, {i}] = {value:g} is negative: no Gram matrix has that")
    for i, row in enumerate(rows):
        for j in range(i):
            size = math.sqrt(max(diagonal[i], 0.0)) * math.sqrt(max(diagonal[j], 0.0))
            if abs(row[j] - rows[j][i]) > tolerance * size:
                raise ValueError(
                    f"gram is not symmetric: gram[{i}, {j}] = {row[j]:g}, "
                    f"gram[{j}, {i}] = {rows[j][i]:g}"
                )
