"""How tensors lie in memory: K tensors of one shape as a run of elements in a common order."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def same_order(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return tensors of one shape so that element i of every storage is the same element.

    Element-wise work may then go over the storages, `numel` elements from `data_ptr()` on.
    Tensors that lie densely with equal strides (channels-last, transposed) are returned as they
    are; otherwise, those that are not contiguous are copied, and only they.
    """
    if all(tensor.is_contiguous() for tensor in tensors):
        return list(tensors)
    strides = tensors[0].stride()
    if all(tensor.stride() == strides for tensor in tensors) and _is_dense(tensors[0]):
        return list(tensors)
    return [tensor.contiguous() for tensor in tensors]


def storage_view(tensor: Tensor) -> Tensor:
    """Return a dense tensor's elements as [numel] in storage order, sharing its memory."""
    return tensor.as_strided((tensor.numel(),), (1,))


def _is_dense(tensor: Tensor) -> bool:
    """Tell whether the elements fill one run of memory without a gap or an overlap."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True
