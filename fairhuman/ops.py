"""The operations of a FairHuman step, with their checks: the only place that chooses a backend.

Every tensor runs on the PyTorch reference today.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fairhuman.fairness.mpd import MPDSolution, solve_mpd
from fairhuman.kernels import reference

__all__ = ["MPDSolution", "combine", "gram", "region_mse", "solve_mpd"]

Rows = Tensor | Sequence[Sequence[Tensor]]
"""K gradients: one tensor [K, P], or K lists of tensors whose shapes agree from list to list."""


def region_mse(
    pred: Tensor,
    target: Tensor,
    masks: Tensor,
    sample_weight: Tensor | None = None,
    reduction: str = "image",
) -> Tensor:
    """Return the denoising loss of the whole image and of each region, in one pass.

    With residual r = pred - target, m_0 = 1 and m_k the masks (FairHuman, arXiv 2507.02714):

        image:  l_k = 1/B sum_b s_b * sum_chw m_k r^2 / (C H W)
        region: l_k = sum_b s_b * sum_chw m_k r^2 / (C * sum_b sum_hw m_k)

    Args:
        pred: [B, C, H, W], any float dtype; the losses are differentiable in it.
        target: [B, C, H, W].
        masks: [B, R, H, W] in [0, 1]; R may be 0. A region that is nowhere has loss 0.
        sample_weight: [B], the weights s_b (min-SNR), or None for 1.
        reduction: "image" or "region".

    Returns:
        [K] with K = 1 + R, float32 (float64 for float64 inputs); losses[0] is the whole image.

    Raises:
        ValueError: shapes that do not fit, or an unknown reduction.
    """
    if pred.ndim != 4 or pred.shape != target.shape:
        raise ValueError(
            f"pred and target must be [B, C, H, W] alike, got {list(pred.shape)} and "
            f"{list(target.shape)}"
        )
    batch, _, height, width = pred.shape
    if masks.ndim != 4 or masks.shape[0] != batch or masks.shape[2:] != (height, width):
        raise ValueError(
            f"masks must be [B, R, H, W] = [{batch}, R, {height}, {width}], got {list(masks.shape)}"
        )
    if sample_weight is not None and sample_weight.shape != (batch,):
        raise ValueError(f"sample_weight must be [B] = [{batch}], got {list(sample_weight.shape)}")
    if reduction not in ("image", "region"):
        raise ValueError(f"reduction must be 'image' or 'region', got {reduction!r}")
    return reference.region_mse(pred, target, masks, sample_weight, reduction)


def gram(rows: Rows) -> Tensor:
    """Return A = [<g_i, g_j>] of K gradients, reading every gradient once.

    Args:
        rows: [K, P], or K lists of tensors whose shapes agree; float32, bfloat16 or float16.

    Returns:
        [K, K] float64, symmetric to the bit, the same bits on every call.

    Raises:
        ValueError: no rows, or rows that differ in shape.
    """
    return reference.gram(_as_lists(rows))


def combine(
    rows: Rows, weights: Tensor, out: Tensor | Sequence[Tensor] | None = None
) -> Tensor | Sequence[Tensor]:
    """Return d = sum_k w_k g_k.

    Args:
        rows: [K, P], or K lists of tensors whose shapes agree.
        weights: [K]. A row of weight 0 is not read.
        out: where d goes, shaped like one row; may be one of the rows. None allocates.

    Returns:
        `out`: a [P] tensor where `rows` is one tensor, else a list of tensors.

    Raises:
        ValueError: shapes that do not fit.
    """
    lists = _as_lists(rows)
    if weights.shape != (len(lists),):
        raise ValueError(f"weights must be [K] = [{len(lists)}], got {list(weights.shape)}")
    if out is None:
        out = torch.empty_like(rows[0]) if isinstance(rows, Tensor) else _empty_like(lists[0])
    destination = [out] if isinstance(out, Tensor) else out
    if [t.shape for t in destination] != [t.shape for t in lists[0]]:
        raise ValueError("out must have the shapes of one row")
    reference.combine(lists, weights, destination)
    return out


def _empty_like(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [torch.empty_like(tensor) for tensor in tensors]


def _as_lists(rows: Rows) -> Sequence[Sequence[Tensor]]:
    if isinstance(rows, Tensor):
        if rows.ndim != 2 or rows.shape[0] == 0:
            raise ValueError(f"rows must be [K, P] with K >= 1, got {list(rows.shape)}")
        return [[row] for row in rows]
    if not rows:
        raise ValueError("rows must hold at least one gradient")
    shapes = [[tensor.shape for tensor in row] for row in rows]
    if any(shape != shapes[0] for shape in shapes) or not shapes[0]:
        raise ValueError("every row must hold tensors of the same shapes, and at least one")
    return rows
