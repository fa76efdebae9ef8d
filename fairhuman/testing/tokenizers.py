"""Tokenizers made from nothing: every printable letter is a token."""

from __future__ import annotations

import string
from typing import Any

_LETTERS = string.digits + string.ascii_letters + string.punctuation


def letters_t5(length: int) -> Any:
    """Return a T5Tokenizer of single letters that reads so many tokens."""
    from transformers import T5Tokenizer

    special = [(name, 0.0) for name in ("<pad>", "</s>", "<unk>")]
    vocab = [*special, ("▁", -2.0), *((letter, -3.0) for letter in _LETTERS)]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=length)


def letters_qwen() -> Any:
    """Return a Qwen2Tokenizer of single bytes, with Qwen3's turns of a chat."""
    from tokenizers import pre_tokenizers
    from transformers import Qwen2Tokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: index for index, letter in enumerate(alphabet)}
    vocab["<|endoftext|>"] = len(vocab)
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
    )
    return tokenizer


def letters_clip() -> Any:
    """Return a CLIPTokenizer of single letters."""
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(f"{letter}</w>" for letter in alphabet)]
    vocab = {token: index for index, token in enumerate(tokens)}
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocab[special] = len(vocab)
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77)
