"""What is said of texts that are longer than a model reads."""

from __future__ import annotations

from collections.abc import Sequence


def long_ones(counts: Sequence[int], size: int, what: str, then: str) -> list[str]:
    """Return a line on the captions that are longer than so many tokens; none if none is.

    Args:
        counts: the tokens of each.
        size: the tokens that are read.
        what: what is counted, such as "captions".
        then: what becomes of the long ones.
    """
    long = [count for count in counts if count > size]
    if not long:
        return []
    return [
        f"{len(long)} of {len(counts)} {what} are longer than {size} tokens (the longest has "
        f"{max(long)}): {then}"
    ]
