"""The texts that pictures are drawn from."""

from __future__ import annotations

from collections.abc import Sequence

from fairhuman.common.errors import UserError
from fairhuman.config.prompt_file import no_text


def check_texts(prompts: Sequence[str], negatives: Sequence[str]) -> None:
    """Check that there are prompts, and that they are text.

    Raises:
        UserError: there is none, or one holds a character that no text has.
    """
    if not prompts:
        raise UserError("--prompt, --prompts: give at least one prompt")
    for number, prompt in enumerate(prompts, start=1):
        if letter := no_text(prompt):
            raise UserError(f"--prompt: prompt {number} holds {letter}")
    for negative in negatives:
        if letter := no_text(negative):
            raise UserError(f"--negative: holds {letter}")
