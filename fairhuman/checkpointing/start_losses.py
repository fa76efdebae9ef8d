"""The held-out losses of before the first step, which each checkpoint keeps.

The log has their means, but what a later change is uncertain by needs those of every image. And a
run may be resumed where its log is not: from another folder, or after it was removed.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter

from fairhuman.common.errors import ConfigError
from fairhuman.common.json_text import STRICT, Name, parse_as
from fairhuman.common.run_folder import START_LOSSES
from fairhuman.common.text_files import read_limited

# A kilobyte per held-out image.
_LARGEST = 1 << 28

Number = Annotated[float, Field(ge=0.0)]
Image = Annotated[str, Field(max_length=100_000)]


@dataclass(frozen=True)
class StartLosses:
    """The file START_LOSSES: of N images, Q quarters of the timesteps, K objectives.

    Without images the start is not known: the run's first checkpoints were written before it was
    measured. A checkpoint without the file has held-out losses that carry `objectives.scale`.
    """

    __pydantic_config__ = STRICT
    names: list[Name] = field(default_factory=list)
    """[K]"""
    images: list[Image] = field(default_factory=list)
    """[N], their ids."""
    reduction: Name = ""
    losses: list[list[list[Number]]] = field(default_factory=list)
    """[N, Q, K]"""
    areas: list[list[Number]] = field(default_factory=list)
    """[N, K], in cells of the latent grid."""

    def write(self, folder: Path) -> Path:
        """Write it into a checkpoint's folder; return the file."""
        text = json.dumps(asdict(self), allow_nan=False)
        path = folder / START_LOSSES
        path.write_text(text + "\n", encoding="utf-8")
        return path


_KIND = TypeAdapter(StartLosses)


def load_start(folder: Path) -> StartLosses | None:
    """Return what a checkpoint has kept; None if it has no such file.

    Raises:
        ConfigError: it cannot be read, or is no such file.
    """
    path = folder / START_LOSSES
    if not path.exists():
        return None
    found = parse_as(_KIND, read_limited(path, _LARGEST), path)
    images, objectives = len(found.images), len(found.names)
    quarters = {len(image) for image in found.losses}
    fits = len(found.losses) == len(found.areas) == images and len(quarters) <= 1
    fits = fits and all(len(row) == objectives for image in found.losses for row in image)
    if not (fits and all(len(row) == objectives for row in found.areas)):
        raise ConfigError(
            f"{path}: losses and areas are not of its {images} images and {objectives} "
            "objectives; resume from another checkpoint"
        )
    return found
