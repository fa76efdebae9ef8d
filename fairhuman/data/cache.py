"""What the frozen models make of a data set, on disk: a safetensors file per posterior or caption.

A file's name is a digest of all that its content depends on: the image file's bytes, how the image
is placed, the text, and the models. So what is stale is never found, and runs may share a folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fairhuman.common.errors import OutputError
from fairhuman.common.files import as_output_error, replacing
from fairhuman.data.records import Record
from fairhuman.data.transform import Placement
from fairhuman.models.encoded import Posterior

# To be raised when the same inputs come to give other tensors.
VERSION = 2


@dataclass(frozen=True)
class Cache:
    """The cache of one data set under one model."""

    folder: Path
    vae: str
    """Digest of the VAE."""
    text: str | None
    """Digest of the tokenizers and text encoders; None: they are trained, and captions not kept."""
    prompt_type: type[Any]
    """The class of encoded captions, a NamedTuple."""
    images: Mapping[str, str]
    """Digest of each record's image file, by the record's id."""

    def posterior_path(self, record: Record, placement: Placement) -> Path:
        """Return where the posterior of a placed image is, or would be."""
        image = self.images[record.id]
        return self._path("latents", self.vae, image, repr(astuple(placement)))

    def prompt_path(self, caption: str | None) -> Path:
        """Return where an encoded caption is, or would be; None is a dropped one."""
        assert self.text is not None, "captions are not kept"
        words = ("dropped",) if caption is None else ("caption", caption)
        return self._path("text", self.text, *words)

    def posterior(self, record: Record, placement: Placement) -> Posterior:
        """Read a posterior, as a batch of one.

        Raises:
            OutputError: it is not there, or damaged.
        """
        return Posterior(**_read(self.posterior_path(record, placement)))

    def prompt(self, caption: str | None) -> Any:
        """Read an encoded caption, as a batch of one; None where captions are not kept.

        Raises:
            OutputError: it is not there, or damaged.
        """
        return self.prompt_type(**_read(self.prompt_path(caption))) if self.text else None

    def _path(self, kind: str, *parts: str) -> Path:
        text = "\0".join((str(VERSION), *parts))
        name = hashlib.blake2b(text.encode(), digest_size=20).hexdigest()
        return self.folder / kind / name[:2] / f"{name}.safetensors"


def write(path: Path, tensors: Any) -> None:
    """Write a NamedTuple of tensors as a file of the cache, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    content = {name: tensor.cpu().contiguous() for name, tensor in tensors._asdict().items()}
    with as_output_error(path.parent, "data.cache: cannot be written"):
        path.parent.mkdir(parents=True, exist_ok=True)
    # Not waiting for the disk: `is_whole` finds what a power cut left short.
    with replacing(path, shared=True, sync=False) as aside:
        aside.write_bytes(safetensors.torch.save(content))


def is_whole(path: Path) -> bool:
    """Return whether a file of the cache is there, as long as its header says."""
    try:
        with safe_open(path, framework="pt"):
            return True
    except (OSError, SafetensorError):
        return False


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"data.cache: {path} cannot be read ({error}); start again, and it is built again"
        ) from error
