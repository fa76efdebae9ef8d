"""How many tokens the captions of a data set have, counted once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from fairhuman.common.distributed import agreed, gathered, local_rank, rank, shared
from fairhuman.common.files import replacing
from fairhuman.data.index.records import Records, SourceRecords
from fairhuman.models.families.protocol import TokenCounter

CHUNK = 2**12
"""Captions that are counted at a time."""


def caption_tokens(records: Records, counter: TokenCounter) -> NDArray[np.int32]:
    """Return how many tokens each record's caption has, [N]; a collective.

    Each rank counts a part of what is not known.

    Raises:
        OutputError: the index cannot be written.
    """
    return np.concatenate([_of_source(part, counter) for part in records.parts])


def _of_source(records: SourceRecords, counter: TokenCounter) -> NDArray[np.int32]:
    listing = records.listing
    digest = hashlib.blake2b(listing.path.name.encode(), digest_size=16)
    for text in counter.tokenizer_texts():
        digest.update(text.encode())
    path = listing.path.with_name(f"tokens-{digest.hexdigest()}.npy")

    def read() -> NDArray[np.int32] | None:
        with suppress(OSError, ValueError):
            found: NDArray[np.int32] = np.load(path, allow_pickle=False)
            if found.shape == (len(listing),):
                return found
        return None

    known = read()
    if all(gathered(lambda: known is not None)):
        assert known is not None  # here too
        return known[records.rows]
    texts = listing.column("text")
    starts = range(0, len(listing), CHUNK)

    def count(mine: Sequence[int]) -> list[NDArray[np.int32]]:
        bar = tqdm(mine, "counting tokens", delay=2, disable=rank() != 0)
        chunks = (texts.slice(start, CHUNK).fill_null("").to_pylist() for start in bar)
        return [np.array(counter.token_counts(chunk), np.int32) for chunk in chunks]

    counts = np.concatenate(shared(count, starts))

    def write() -> None:
        if local_rank() == 0:
            with replacing(path, shared=True) as aside, aside.open("wb") as file:
                np.save(file, counts)

    agreed(write)
    return counts[records.rows]
