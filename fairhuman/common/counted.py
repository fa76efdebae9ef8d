"""Counts in messages: 1 picture, 2 pictures."""

from __future__ import annotations


def counted(count: int, one: str) -> str:
    """Return a count with its noun, of which the plural ends in s."""
    return f"{count} {one}" if count == 1 else f"{count} {one}s"
