"""The operations of a FairHuman step, with their checks: the only place that chooses a backend.

CUDA tensors take the Triton kernels, all others plain PyTorch (`kernels/reference.py`). For
debugging, the environment variable FAIRHUMAN_OPS forces one: `reference` or `triton`. A kernel
that does not compile is an error; nothing falls back in silence.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from fairhuman.common.transfer import to_device
from fairhuman.fairness.mpd import MPDSolution, solve_mpd
from fairhuman.kernels import countsketch, reference

__all__ = ["MPDSolution", "add_sketch", "combine", "gram", "region_mse", "solve_mpd"]

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
        pred: [B, C, H, W], any float dtype and strides; the losses are differentiable in it.
        target: [B, C, H, W]; a constant, as are the masks and weights.
        masks: [B, R, H, W] in [0, 1]; R may be 0. A region that is nowhere has loss 0.
        sample_weight: [B], the weights s_b (min-SNR), or None for 1.
        reduction: "image" or "region".

    Returns:
        [K] with K = 1 + R, float32 (float64 for float64 inputs); losses[0] is the whole image.

    Raises:
        ValueError: shapes or devices that do not fit, nothing to average, an unknown reduction,
            or a constant that requires a gradient.
    """
    if pred.ndim != 4 or pred.shape != target.shape:
        raise ValueError(
            f"pred and target must be of the same shape [B, C, H, W], got {list(pred.shape)} and "
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
    if pred.numel() == 0:
        raise ValueError(f"pred must hold at least one element, got {list(pred.shape)}")
    constants = [target, masks] if sample_weight is None else [target, masks, sample_weight]
    _check_devices([pred, *constants])
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in constants):
        raise ValueError("region_mse is differentiable in pred only: detach the other arguments")
    if _takes_triton(pred):
        from fairhuman.kernels.region_mse import region_mse as kernel

        return kernel(pred, target, masks, sample_weight, reduction)
    return reference.region_mse(pred, target, masks, sample_weight, reduction)


def gram(rows: Rows) -> Tensor:
    """Return A = [<g_i, g_j>] of K gradients, reading every gradient once.

    On CUDA nothing waits for the device, and one tensor per row ([K, P], or lists of one) may be
    captured in a CUDA graph. There, products of float32, bfloat16 and float16 are float32: two
    elements whose product is below 1e-38 or above 3e38 lose their precision or overflow.

    Args:
        rows: [K, P], or K lists of tensors whose shapes and dtypes agree; any float dtype.

    Returns:
        [K, K] float64, symmetric to the bit, the same bits on every call.

    Raises:
        ValueError: no rows, or rows that differ in shape, dtype or device.
    """
    lists = _as_lists(rows)
    if _takes_triton(lists[0][0]):
        from fairhuman.kernels.gram import gram as kernel

        return kernel(lists)
    return reference.gram(lists)


def combine(
    rows: Rows,
    weights: Tensor,
    out: Tensor | Sequence[Tensor] | None = None,
    *,
    scale: Tensor | None = None,
) -> Tensor | Sequence[Tensor]:
    """Return d = scale * sum_k w_k g_k, in one pass.

    Args:
        rows: [K, P], or K lists of tensors whose shapes and dtypes agree.
        weights: [K], float32 or float64. A row of weight 0 is not read. On the rows' device,
            nothing waits for it; elsewhere, they are copied there.
        out: where d goes, shaped like one row, any float dtype; may be one of the rows, but not
            overlap them otherwise. None allocates.
        scale: a factor on every weight, 0-d, such as that of gradient clipping; None for 1.

    Returns:
        `out`: a [P] tensor where `rows` is one tensor, else a list of tensors.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit.
    """
    lists = _as_lists(rows)
    device = lists[0][0].device
    if weights.shape != (len(lists),):
        raise ValueError(f"weights must be [K] = [{len(lists)}], got {list(weights.shape)}")
    if scale is not None and scale.ndim != 0:
        raise ValueError(f"scale must be 0-d, got {list(scale.shape)}")
    if out is None:
        out = torch.empty_like(rows[0]) if isinstance(rows, Tensor) else _empty_like(lists[0])
    destination = [out] if isinstance(out, Tensor) else out
    if [t.shape for t in destination] != [t.shape for t in lists[0]]:
        raise ValueError("out must have the shapes of one row")
    _check_devices([lists[0][0], *destination])
    if _takes_triton(lists[0][0]):
        from fairhuman.kernels.combine import combine as kernel

        weights = to_device(weights, device)
        scale = None if scale is None else to_device(scale, device)
        kernel(lists, weights, destination, scale)
    else:
        reference.combine(lists, weights, destination, scale)
    return out


def add_sketch(
    out: Tensor, tensors: Sequence[Tensor], starts: Sequence[int], seed: int = 0
) -> None:
    """Add the CountSketch of parts of a vector to `out`: inner products of sketches are unbiased.

    Linear: sketches of the parts of a vector, and of the ranks' terms of a sum, may be added. An
    element's bucket and sign depend only on its index in the vector and the seed. On CUDA nothing
    waits for the device. The algorithm is described in `fairhuman.kernels.countsketch`.

    Args:
        out: [m] float64, m a multiple of 64.
        tensors: parts of the vector, any shapes and float dtypes, on out's device; read in their
            logical order, as float32.
        starts: of each, the index of its first element in the vector.
        seed: of the hashes.

    Raises:
        ValueError: `out` is not float64, or its size no multiple of 64; as many starts as tensors
            are not given; several devices.
    """
    if out.ndim != 1 or len(out) == 0 or len(out) % countsketch.BITS or out.dtype != torch.float64:
        raise ValueError(
            f"out must be [m] float64 with m a multiple of {countsketch.BITS}, got "
            f"{list(out.shape)} {out.dtype}"
        )
    if len(starts) != len(tensors):
        raise ValueError(f"{len(tensors)} tensors need as many starts, got {len(starts)}")
    _check_devices([out, *tensors])
    if _takes_triton(out):
        from fairhuman.kernels.sketch import add_sketch as kernel

        kernel(out, tensors, starts, seed)
    else:
        countsketch.add_sketch(out, tensors, starts, seed)


def _takes_triton(tensor: Tensor) -> bool:
    choice = os.environ.get("FAIRHUMAN_OPS")
    if choice is None:
        return tensor.is_cuda
    if choice not in ("reference", "triton"):
        raise ValueError(f"FAIRHUMAN_OPS must be 'reference' or 'triton', got {choice!r}")
    if choice == "triton" and not tensor.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"FAIRHUMAN_OPS=triton cannot run a tensor on {tensor.device}: move it to CUDA, unset "
            "FAIRHUMAN_OPS, or set TRITON_INTERPRET=1 before the start to interpret the kernels"
        )
    return choice == "triton"


def _check_devices(tensors: Iterable[Tensor]) -> None:
    devices = {tensor.device for tensor in tensors}
    if len(devices) > 1:
        raise ValueError(f"all tensors must be on one device, got {sorted(map(str, devices))}")


def _empty_like(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [torch.empty_like(tensor) for tensor in tensors]


def _as_lists(rows: Rows) -> Sequence[Sequence[Tensor]]:
    if isinstance(rows, Tensor):
        if rows.ndim != 2 or rows.shape[0] == 0:
            raise ValueError(f"rows must be [K, P] with K >= 1, got {list(rows.shape)}")
        return [[row] for row in rows]
    if not rows:
        raise ValueError("rows must hold at least one gradient")
    kinds = [[(tensor.shape, tensor.dtype) for tensor in row] for row in rows]
    if any(kind != kinds[0] for kind in kinds) or not kinds[0]:
        raise ValueError("every row must hold tensors of the same shapes and dtypes, at least one")
    _check_devices(tensor for row in rows for tensor in row)
    return rows
