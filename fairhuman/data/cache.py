"""What the frozen models make of a data set, on disk: posteriors and encoded captions, in shards.

An entry's key is a digest of all that its content depends on: the image file's bytes, how the image
is placed, the text, the models, and the type of the stored numbers. So an outdated entry is
never found, and runs may share a folder. In it, each model has a folder of shards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import astuple
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from fairhuman.common.errors import OutputError
from fairhuman.common.units import DTYPES
from fairhuman.data.cache_shards import Shards, damaged
from fairhuman.data.keys import BYTES
from fairhuman.data.records import Record
from fairhuman.data.transform import Placement
from fairhuman.models.encoded import Posterior

# To be raised when the same inputs come to give other tensors.
VERSION = 3


class Cache:
    """The cache of one data set under one model.

    Args:
        folder: `data.cache`.
        precision: `data.cache_precision`.
        vae: digest of the VAE.
        text: digest of the tokenizers and text encoders; None: they are trained, and captions not
            kept.
        prompt_type: the class of encoded captions, a NamedTuple.
        images: digest of each record's image file, by the record's id.
    """

    def __init__(
        self,
        folder: Path,
        precision: str,
        vae: str,
        text: str | None,
        prompt_type: type[Any],
        images: Mapping[str, bytes],
    ) -> None:
        self.folder = folder
        self.dtype = DTYPES[precision]
        """Of the stored posteriors."""
        self.prompt_type, self._images = prompt_type, images
        self._vae, self._text = (str(VERSION), "latents", precision, vae), text
        self.latents = Shards(folder / f"latents-{precision}-{_short(*self._vae)}")
        self.captions = None
        if text:
            self.captions = Shards(folder / f"captions-{_short(str(VERSION), 'text', text)}")

    def posterior_key(self, record: Record, placement: Placement) -> bytes:
        """Return the key of the posterior of a placed image."""
        return _digest(*self._vae, self._images[record.id].hex(), repr(astuple(placement)))

    def prompt_key(self, caption: str | None) -> bytes:
        """Return the key of an encoded caption; None is a dropped one."""
        assert self._text is not None, "captions are not kept"
        words = ("dropped",) if caption is None else ("caption", caption)
        return _digest(str(VERSION), "text", self._text, *words)

    def posterior(self, record: Record, placement: Placement) -> Posterior:
        """Read a posterior, as a batch of one in float32.

        Raises:
            OutputError: it is not there, or damaged.
        """
        read = _read(self.latents, self.posterior_key(record, placement))
        return Posterior(**{name: tensor.float() for name, tensor in read.items()})

    def prompt(self, caption: str | None) -> Any:
        """Read an encoded caption, as a batch of one; None where captions are not kept.

        Raises:
            OutputError: it is not there, or damaged.
        """
        if self.captions is None:
            return None
        return self.prompt_type(**_read(self.captions, self.prompt_key(caption)))


def as_stored(posterior: Posterior, dtype: torch.dtype) -> Posterior:
    """Return a posterior in the type that it is stored in.

    Raises:
        OutputError: the type cannot hold its numbers.
    """
    stored = Posterior(*(tensor.to(dtype) for tensor in posterior))
    for before, after in zip(posterior, stored, strict=True):
        if (after.isinf() & before.isfinite()).any():
            name = next(name for name, known in DTYPES.items() if known == dtype)
            raise OutputError(
                f"data.cache_precision={name}: the VAE returns numbers up to "
                f"{before.abs().max().item():.3g}, which {name} cannot hold; set bf16 or fp32"
            )
    return stored


def encode(tensors: Any) -> bytes:
    """Return a NamedTuple of tensors as the content of an entry."""
    content = {name: tensor.cpu().contiguous() for name, tensor in tensors._asdict().items()}
    return safetensors.torch.save(content)


def _read(shards: Shards, key: bytes) -> dict[str, Tensor]:
    path, content = shards.read(key)
    try:
        return safetensors.torch.load(content)
    except SafetensorError as error:
        raise damaged(path, str(error)) from error


def _digest(*parts: str) -> bytes:
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=BYTES).digest()


def _short(*parts: str) -> str:
    return _digest(*parts).hex()[:12]
