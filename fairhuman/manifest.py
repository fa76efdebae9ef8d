"""What a checkpoint says of itself: where its run was, how it was made, which files it has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
_VERSIONS = ("fairhuman", "torch", "deepspeed", "bitsandbytes")


@dataclass(frozen=True)
class Best:
    """The step at which a held-out loss was the lowest."""

    metric: str
    value: float
    step: int


@dataclass(frozen=True)
class Progress:
    """Where a run is. Orders and random numbers follow from it, so there is no more to keep."""

    step: int = 0
    samples_seen: int = 0
    """Over all ranks."""
    skipped: int = 0
    best: Best | None = None
    """So far, by train.keep_best."""


@dataclass(frozen=True)
class Setup:
    """What decides the form of DeepSpeed's files. Alike: they load as they are."""

    ranks: int
    stage: int
    offload: tuple[str, ...]
    """What lies on the CPU: optimizer, param."""
    precision: str
    optimizer: str

    def __str__(self) -> str:
        ranks = "1 rank" if self.ranks == 1 else f"{self.ranks} ranks"
        parts = [ranks, f"ZeRO-{self.stage}", *(f"{name} on the cpu" for name in self.offload)]
        return ", ".join([*parts, self.precision, self.optimizer])


def setup_of(deepspeed: Mapping[str, Any], optimizer: str, ranks: int) -> Setup:
    """Return the setup of a DeepSpeed config (see `engine.deepspeed_config`)."""
    zero = deepspeed["zero_optimization"]
    precision = [name for name in ("fp16", "bf16") if deepspeed[name]["enabled"]]
    offload = [
        name
        for name in ("optimizer", "param")
        if (zero.get(f"offload_{name}") or {}).get("device", "none") != "none"
    ]
    return Setup(ranks, zero["stage"], tuple(offload), [*precision, "fp32"][0], optimizer)


@dataclass(frozen=True)
class Manifest:
    """The file manifest.json. None: written by a FairHuman that did not yet record it."""

    ranks: int
    progress: Progress
    files: dict[str, int]
    """Every file of the checkpoint but this one, with its size in bytes."""
    setup: Setup | None = None
    global_batch: int | None = None
    """Samples per optimizer step, over all ranks."""
    versions: dict[str, str] = field(default_factory=dict)
    base: str | None = None
    """Digest of the frozen weights beside those that are trained; None too where there are none."""

    def write(self, folder: Path) -> None:
        """Write it into a checkpoint's folder."""
        (folder / MANIFEST).write_text(json.dumps(asdict(self), indent=2), encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Read a checkpoint's manifest.

    Raises:
        OSError, ValueError, KeyError, TypeError: it is missing or broken; see `incomplete`.
    """
    tree = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    ranks, progress = tree["ranks"], Progress(**tree["progress"])
    if tree["progress"].get("best"):
        progress = replace(progress, best=Best(**tree["progress"]["best"]))
    setup = tree.get("setup")
    if setup:
        setup = Setup(**{**setup, "offload": tuple(setup["offload"])})
    return Manifest(
        ranks=ranks,
        progress=progress,
        files=dict(tree["files"]),
        setup=setup,
        global_batch=tree.get("global_batch"),
        versions=tree.get("versions", {}),
        base=tree.get("base"),
    )


def installed() -> dict[str, str]:
    """Return the versions of the packages that write and read checkpoints."""
    return {name: metadata.version(name) for name in _VERSIONS}


def incomplete(folder: Path) -> str | None:
    """Return what a checkpoint lacks, or None if every file is there with its size."""
    if not folder.is_dir():
        return "there is no such folder (a checkpoint is OUT/checkpoints/step-NNNNNNNN)"
    try:
        files = read_manifest(folder).files
    except (OSError, ValueError, KeyError, TypeError):
        return f"is no checkpoint of FairHuman: {MANIFEST} is missing or broken"
    lacking = missing(folder, files)
    if lacking:
        return f"is not whole: {lacking[0]} is missing or has another size than when it was written"
    return None


def missing(folder: Path, files: Mapping[str, int]) -> list[str]:
    """Return the files that are not there, or not with their size in bytes."""
    return [
        name
        for name, size in files.items()
        if not (folder / name).is_file() or (folder / name).stat().st_size != size
    ]
