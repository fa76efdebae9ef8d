"""Rules: how the weights w of d = sum_k w_k g_k follow from the Gram matrix A of the gradients.

- `mpd`: A w = w^(-1/alpha), the alpha-fair direction; alpha = 2 is FairHuman's (arXiv 2507.02714)
- `log_mpd`: `mpd` of the losses' logarithms, whose gradients are g_k / l_k
- `nash`: A w = 1 / w, the Nash bargaining solution (2202.01017): `mpd` with alpha = 1
- `imtl_g`: equal projections of d to all unit gradients (IMTL, ICLR 2021)
- `cagrad`: the best worst descent within a ball around the mean gradient (2110.14048)
- `mgda`: the shortest vector in the gradients' convex hull (1810.04650)
- `upgrad`: the mean of the gradients, each projected to conflict with none (2406.16232)
- `aligned`: the mean of the gradients with all their singular values made the smallest (2305.19000)

The first three are solved natively (csrc/mpd.h), where the matrix is. The others are solved on the
host, by TorchJD and by quadprog: the extra `rules`. Weights of imtl_g and aligned can be negative.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor

from fairhuman.common.extras import install_line
from fairhuman.fairness.mpd import Status

Rule = Literal["mpd", "log_mpd", "nash", "imtl_g", "cagrad", "mgda", "upgrad", "aligned"]
RULES: tuple[Rule, ...] = get_args(Rule)
WITH_ALPHA: tuple[Rule, ...] = ("mpd", "log_mpd")
"""Rules that `alpha` belongs to."""
NATIVE: tuple[Rule, ...] = ("mpd", "log_mpd", "nash")
"""Rules of the native solver, which alone can raise A's diagonal (`floor`)."""

Weighting = Callable[[Tensor], Tensor]
"""From A, [n, n] float64 on the host with a diagonal of at most 1, to weights [n]."""

CAGRAD_RADIUS = 0.5
"""The ball's radius over the norm of the mean gradient: c of CAGrad."""
_RIDGE = 1e-12
"""Relative to A's trace: what quadprog needs to factor a singular matrix."""


def host_weights(rule: Rule, gram: Tensor) -> tuple[Tensor, Status]:
    """Return a rule's weights, [K] float64, and what it met with; for rules not in `NATIVE`.

    The status is `ABSENT` if an objective's gradient is 0: its weight is 0, and the others are
    solved without it; `STATIONARY` if the rule's direction is 0, as are all weights then; and
    `NONFINITE` with weights of 0 if A or what the rule makes of it is not finite.

    Args:
        rule: a name.
        gram: [K, K] float64, on the host.

    Raises:
        ImportError: what the rule is solved by is not installed.
    """
    weights = gram.new_zeros(len(gram))
    if not bool(gram.isfinite().all()):
        return weights, Status.NONFINITE
    here = gram.diagonal() > 0
    status = Status.OK if bool(here.all()) else Status.ABSENT
    if not bool(here.any()):
        return weights, status
    present = gram[here][:, here]
    present = present / present.diagonal().max()  # some rules take what is small for 0
    weighting_of_rule = weighting(rule)
    try:
        found = weighting_of_rule(present)
    except Exception as error:  # each solver has its own
        warnings.warn(f"fairness rule {rule}: no weights ({error})", stacklevel=2)
        return weights, Status.NONFINITE
    if not bool(found.isfinite().all()):
        return weights, Status.NONFINITE
    if not bool(found.any()):
        return weights, status | Status.STATIONARY
    weights[here] = found
    return weights, status


@cache
def weighting(rule: Rule) -> Weighting:
    """Return what solves for a rule's weights.

    Raises:
        ImportError: what it is solved by is not installed; the message says how to.
    """
    try:
        return _WEIGHTINGS[rule]()
    except ImportError as error:
        # TorchJD's own message spans what it needs; the first line is enough.
        why = str(error).partition(". Install")[0]
        raise ImportError(f"rule={rule!r}: {why}; {install_line('rules')}") from error


def _imtl_g() -> Weighting:
    from torchjd.aggregation import IMTLGWeighting

    return IMTLGWeighting()


def _aligned() -> Weighting:
    from torchjd.aggregation import AlignedMTLWeighting

    return AlignedMTLWeighting()


def _cagrad() -> Weighting:
    from torchjd.aggregation import CAGradWeighting

    return CAGradWeighting(c=CAGRAD_RADIUS)


def _upgrad() -> Weighting:
    from torchjd.aggregation import UPGradWeighting
    from torchjd.linalg import QuadprogProjector

    return UPGradWeighting(projector=QuadprogProjector(reg_eps=_RIDGE))


def _mgda() -> Weighting:
    """Return the exact solution: TorchJD's 100 Frank-Wolfe steps leave some percent of the norm."""
    import numpy as np
    import quadprog  # noqa: F401  # qpsolvers loads it late
    from qpsolvers import solve_qp

    def weights(gram: Tensor) -> Tensor:
        n = len(gram)
        matrix = (gram / gram.trace() + _RIDGE * torch.eye(n, dtype=gram.dtype)).numpy()
        ones = np.ones(n)
        found = solve_qp(matrix, 0 * ones, A=ones[None], b=ones[:1], lb=0 * ones, solver="quadprog")
        if found is None:
            raise ValueError("quadprog found no solution")
        return torch.from_numpy(found).clamp(min=0.0)

    return weights


_WEIGHTINGS: dict[Rule, Callable[[], Weighting]] = {
    "imtl_g": _imtl_g,
    "cagrad": _cagrad,
    "mgda": _mgda,
    "upgrad": _upgrad,
    "aligned": _aligned,
}
