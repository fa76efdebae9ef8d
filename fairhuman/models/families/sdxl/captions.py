"""Captions as SDXL's text encoders read them, also those that are longer than their 75 tokens.

A caption is split as kohya's sd-scripts splits it (`--max_token_length`): every 75 tokens are a
chunk of their own, with a start and an end token, padded to 77. The chunks' hidden states are
joined without the start and end tokens between them, [75 n + 2, D]; the pooled output is the first
chunk's. A chunk may end in the middle of a phrase: AUTOMATIC1111 looks for a comma by default,
kohya does not. With one chunk this is what diffusers does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fairhuman.common.transfer import to_device

MOST_CHUNKS = 16
"""What any setting may ask for: 1200 tokens."""


def token_counts(pipeline: Any, captions: Sequence[str]) -> list[int]:
    """Return how many tokens each caption has, by the tokenizer that finds more."""
    if not captions:
        return []
    counts = [_counts(tokenizer, captions) for tokenizer in _tokenizers(pipeline)]
    return [max(pair) for pair in zip(*counts, strict=True)]


def tokenizer_texts(pipeline: Any) -> list[str]:
    """Return all that the counts of tokens depend on besides the captions."""
    return [tokenizer.backend_tokenizer.to_str() for tokenizer in _tokenizers(pipeline)]


def room(pipeline: Any, chunks: int = 1) -> int:
    """Return how many tokens of a caption are read in so many chunks: 75 each in SDXL."""
    return chunks * min(tokenizer.model_max_length - 2 for tokenizer in _tokenizers(pipeline))


def chunks_for(pipeline: Any, tokens: int) -> int:
    """Return how many chunks so many tokens fill, at least one."""
    return max(1, -(-tokens // room(pipeline)))


def caption_ids(pipeline: Any, captions: Sequence[str], chunks: int) -> Tensor:
    """Return captions as the text encoders take them, [2, B, chunks, 77] int64.

    What does not fit into the chunks is cut; chunks that a caption does not reach are empty.
    """
    found = []
    for tokenizer in _tokenizers(pipeline):
        size = tokenizer.model_max_length - 2
        start, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
        rows = []
        for ids in _token_ids(tokenizer, captions):
            parts = [ids[i * size : (i + 1) * size] for i in range(chunks)]
            rows.append([[start, *part, end, *[pad] * (size - len(part))] for part in parts])
        found.append(torch.tensor(rows, dtype=torch.int64))
    return torch.stack(found)


def read(text_encoder: Any, text_encoder_2: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Encode captions.

    Args:
        text_encoder: SDXL's first.
        text_encoder_2: its second, with the pooled projection.
        ids: [2, B, N, 77], of `caption_ids`.

    Returns:
        The last hidden states but one of both encoders, [B, 75 N + 2, D], and the second's pooled
        projection of the first chunk, [B, D2].
    """
    batch, chunks = ids.shape[1:3]
    first = text_encoder(ids[0].flatten(0, 1), output_hidden_states=True)
    second = text_encoder_2(ids[1].flatten(0, 1), output_hidden_states=True)
    states = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
    pooled: Tensor = second[0].unflatten(0, (batch, chunks))[:, 0]
    return _joined(states.unflatten(0, (batch, chunks))), pooled


@torch.no_grad()
def encode(pipeline: Any, captions: Sequence[str], chunks: int) -> tuple[Tensor, Tensor]:
    """Encode captions with a pipeline's frozen text encoders; see `read`.

    One caption at a time: what it gives does not depend on those encoded with it, not even by the
    rounding of larger products. All go to the device in one copy that nobody waits for.
    """
    first, second = pipeline.text_encoder, pipeline.text_encoder_2
    ids = to_device(caption_ids(pipeline, captions, chunks), second.device)
    parts = [read(first, second, one) for one in ids.split(1, dim=1)]
    embeds, pooled = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return embeds, pooled


def _joined(states: Tensor) -> Tensor:
    """Join chunks [B, N, 77, D] without the start and end tokens between them."""
    inner = states[:, :, 1:-1].flatten(1, 2)
    return torch.cat([states[:, 0, :1], inner, states[:, -1, -1:]], dim=1)


def _tokenizers(pipeline: Any) -> tuple[Any, Any]:
    return pipeline.tokenizer, pipeline.tokenizer_2


def _counts(tokenizer: Any, captions: Sequence[str]) -> list[int]:
    """Return how many tokens captions have, without start and end; three times faster than ids."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()  # whoever calls the tokenizer sets these two again
    backend.no_padding()
    return list(map(len, backend.encode_batch_fast(list(captions), add_special_tokens=False)))


def _token_ids(tokenizer: Any, captions: Sequence[str]) -> list[list[int]]:
    """Return the tokens of captions, without start and end, however many they are."""
    # Not `verbose`: it would warn of what is longer than the encoder takes.
    found: list[list[int]] = tokenizer(
        list(captions), add_special_tokens=False, truncation=False, verbose=False
    ).input_ids
    return found
