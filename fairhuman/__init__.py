"""FairHuman: fine-tune SDXL so that hands and faces get their fair share of every step.

The method is Minimum Potential Delay weighting of per-region gradients (arXiv 2507.02714).
"""

from fairhuman.common.moved import keep_moved_paths
from fairhuman.fairness import ops
from fairhuman.fairness.local import fair_backward
from fairhuman.fairness.losses import DWA, InverseLoss, Uncertainty
from fairhuman.fairness.ops import MPDSolution, combine, gram, region_mse, solve_mpd

__version__ = "0.2.0"

__all__ = [
    "DWA",
    "InverseLoss",
    "MPDSolution",
    "Uncertainty",
    "__version__",
    "combine",
    "fair_backward",
    "gram",
    "ops",
    "region_mse",
    "solve_mpd",
]

keep_moved_paths()
