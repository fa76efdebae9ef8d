"""Captions as Qwen3 reads them: the turn of a user."""

from __future__ import annotations

from typing import Any

TOKENS = 512
"""That the pipelines read, with those of the turn."""


def user_turn(tokenizer: Any, text: str, thinking: bool) -> str:
    """Return a caption as the turn of a user, as the pipelines write it.

    Args:
        tokenizer: with the chat's template.
        text: the caption.
        thinking: whether the template leaves the model room to think.
    """
    turn: str = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=thinking,
    )
    return turn
