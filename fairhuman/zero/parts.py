"""Lists of parameters cut into shorter ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from torch import Tensor

P = TypeVar("P", bound=Tensor)


def cut(parameters: Iterable[P], most: int) -> Iterator[list[P]]:
    """Cut into lists of at most so many elements, in order; a larger parameter is one by itself."""
    part: list[P] = []
    size = 0
    for parameter in parameters:
        if part and size + parameter.numel() > most:
            yield part
            part, size = [], 0
        part.append(parameter)
        size += parameter.numel()
    if part:
        yield part
