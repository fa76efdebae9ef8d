"""What users gave, as a message shows it: on one line, and cut."""

from __future__ import annotations

import reprlib
from typing import Any

LONGEST = 200
"""Characters of a value in a message; more are cut."""

# Holds its own depth and length, so that no tree is too deep or too large for a message.
_REPR = reprlib.Repr()
_REPR.maxlist = _REPR.maxtuple = _REPR.maxdict = 20
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = LONGEST


def cut(text: str, longest: int = LONGEST) -> str:
    """Return a text, cut after so many characters."""
    return text if len(text) <= longest else f"{text[:longest]}… ({len(text)} characters)"


def shown(value: Any) -> str:
    """Return a value as Python writes it, cut: no line ends, no control characters."""
    if isinstance(value, str) and len(value) > LONGEST:
        return f"{value[:LONGEST]!r}… ({len(value)} characters)"
    return cut(_REPR.repr(value))


def shown_key(key: object) -> str:
    """Return a key or a path as it is, or as Python writes it if it would not print on one line."""
    text = str(key)
    return cut(text) if text.isprintable() else shown(text)
