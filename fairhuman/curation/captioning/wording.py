"""From what a model wrote to a caption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Wording:
    """What is put around a model's text."""

    prefix: str = ""
    """In front of it, such as "a photo of a woman,"."""
    triggers: Sequence[str] = ()
    """Words that every caption holds: in front of the prefix, where they are not in the text."""

    def caption(self, text: str) -> str:
        """Return the caption, on one line; empty if the text holds no words."""
        text = one_line(text)
        if not text:
            return ""
        if self.prefix:
            text = f"{self.prefix} {text}"
        missing = [words for words in self.triggers if words.lower() not in text.lower()]
        return ", ".join([*missing, text])


def one_line(text: str) -> str:
    """Return text with single spaces, without what cannot be printed or was cut in half."""
    printable = (c if c.isprintable() and c != "\ufffd" else " " for c in text)
    return " ".join("".join(printable).split())
