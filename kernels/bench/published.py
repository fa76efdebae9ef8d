"""The weights as the paper's published code solves for them, and how well weights solve at all."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import least_squares
from torch import Tensor


def published_weights(gram: Tensor, alpha: float = 2.0) -> Tensor:
    """Return least_squares' weights of A, [K] float64 on A's device.

    The call of the published training scripts (PRIS-CV/FairHuman): equal weights to start from, a
    copy to the host and back, and tolerances of 1e-8 that are absolute in the gradient of the
    residual's square, so that it stops before it has solved where gradients are small.
    """
    A = gram.detach().double().cpu().numpy()
    start = np.ones(len(A)) / len(A)
    found = least_squares(lambda w: A @ w - np.power(1 / w, 1 / alpha), start, bounds=(0, np.inf))
    return torch.from_numpy(found.x).to(gram.device)


def backward_error(gram: Tensor, weights: Tensor, alpha: float = 2.0) -> float:
    """Return the relative change of A and w^(-1/alpha) for which w is exact (Oettli and Prager)."""
    A, w = gram.double().cpu(), weights.double().cpu()
    target = w ** (-1 / alpha)
    return float(((A @ w - target).abs() / (A.abs() @ w + target)).max())
