"""The texts that pictures are drawn from."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairhuman.common.errors import UserError
from fairhuman.models.families.sdxl import captions


def read_prompts(path: Path) -> list[str]:
    """Return the lines of a text file that are not empty.

    Raises:
        UserError: there is no such file, it is no text, or it has no prompt.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"--prompts {path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"--prompts {path}: cannot be read: is no text in UTF-8 ({error.reason})"
        ) from None
    # Not splitlines, which splits at characters that a prompt may hold.
    lines = [line.strip() for line in text.replace("\r\n", "\n").split("\n")]
    for number, line in enumerate(lines, start=1):
        if letter := _no_text(line):
            raise UserError(f"--prompts {path}, line {number}: holds {letter}; is it a text file?")
    prompts = [line for line in lines if line]
    if not prompts:
        raise UserError(f"--prompts {path}: holds no prompt; write one per line")
    return prompts


def check_texts(prompts: Sequence[str], negative: str) -> None:
    """Check that there are prompts, and that they are text.

    Raises:
        UserError: there is none, or one holds a character that no text has.
    """
    if not prompts:
        raise UserError("--prompt, --prompts: give at least one prompt")
    for number, prompt in enumerate(prompts, start=1):
        if letter := _no_text(prompt):
            raise UserError(f"--prompt: prompt {number} holds {letter}")
    if letter := _no_text(negative):
        raise UserError(f"--negative: holds {letter}")


def long_lines(pipeline: Any, prompts: Sequence[str], negative: str, most_chunks: int) -> list[str]:
    """Return a line on prompts of which the end is not read."""
    counts = captions.token_counts(pipeline, [*prompts, negative])
    size = captions.room(pipeline, most_chunks)
    then = "the rest is cut off"
    if most_chunks == 1:
        then += "; --long-prompts chunk reads it too"
    return captions.long_ones(counts[:-1], size, "prompts", then) + captions.long_ones(
        counts[-1:], size, "negative prompts", then
    )


def _no_text(text: str) -> str | None:
    """Name a character that no text has: a control character, or half of a surrogate pair."""
    for letter in text:
        if letter not in "\t\n\r" and unicodedata.category(letter) in ("Cc", "Cs"):
            return f"the character U+{ord(letter):04X}, which is no text"
    return None
