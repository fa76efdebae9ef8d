"""Copies of states in host memory, for a thread to write while training goes on."""

from __future__ import annotations

import copy
import mmap
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from fairhuman.common.distributed import local_rank_count
from fairhuman.common.host_memory import available_bytes, wanted_again_bytes

_ALIGNED = 64
"""Bytes: a tensor begins at a multiple, as torch's own do."""


class HostCopies:
    """Copies of trees of tensors, each under a name, in memory that is kept for the next copy.

    To have the kernel find and clear new pages takes longer than the copying itself, so the memory
    stays, and is made of huge pages where the kernel has them.
    """

    def __init__(self) -> None:
        self._kept: dict[str, mmap.mmap] = {}

    def copy(self, name: str, tree: Any) -> Any:
        """Return a tree with copies of its tensors in host memory, and of all else in it.

        What was copied under the same name before is overwritten.

        Args:
            name: of the memory.
            tree: tensors and plain values in dicts, lists and tuples.

        Raises:
            MemoryError: the machine has no room for it and for the steps to come, once for each of
                its ranks.
        """
        memory = self._memory(name, sum(map(_room, _tensors(tree))))
        at = 0

        def place(tensor: Tensor) -> Tensor:
            nonlocal at
            if not tensor.numel():
                return torch.empty_like(tensor, device="cpu")
            found = torch.frombuffer(
                memory, dtype=tensor.dtype, count=tensor.numel(), offset=at
            ).view(tensor.shape)
            found.copy_(tensor.detach())
            at += _room(tensor)
            return found

        return _mapped(tree, place)

    def _memory(self, name: str, size: int) -> mmap.mmap:
        kept = self._kept.get(name)
        if kept and len(kept) >= size:
            return kept
        self._kept.pop(name, None)
        del kept  # its pages are free before others are asked for
        if (size + wanted_again_bytes()) * local_rank_count() > available_bytes():
            raise MemoryError(f"{size} bytes")
        made = mmap.mmap(-1, max(1, size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # a kernel without huge pages
                made.madvise(mmap.MADV_HUGEPAGE)
        self._kept[name] = made
        return made


def _room(tensor: Tensor) -> int:
    return -(-tensor.numel() * tensor.element_size() // _ALIGNED) * _ALIGNED


def _tensors(tree: Any) -> Iterator[Tensor]:
    if torch.is_tensor(tree):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from _tensors(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _tensors(value)


def _mapped(tree: Any, change: Callable[[Tensor], Any]) -> Any:
    """Return a tree with each tensor changed and all else copied."""
    if torch.is_tensor(tree):
        return change(tree)
    if isinstance(tree, Mapping):
        found: Any = copy.copy(tree)  # of the same kind, such as an OrderedDict
        for key, value in tree.items():
            found[key] = _mapped(value, change)
        return found
    if isinstance(tree, list):
        return [_mapped(value, change) for value in tree]
    if isinstance(tree, tuple):
        parts = [_mapped(value, change) for value in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    return copy.deepcopy(tree)
