"""What a checkpoint says of itself: where its run was, how it was made, which files it has."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from fairhuman.common.digests import HEX
from fairhuman.common.errors import ConfigError
from fairhuman.common.json_text import STRICT, Name, Natural, parse_as
from fairhuman.common.quoting import shown, shown_key
from fairhuman.common.run_folder import CHECKPOINTS, MANIFEST
from fairhuman.common.text_files import read_limited

_VERSIONS = ("fairhuman", "torch", "deepspeed", "bitsandbytes")
# Of thousands of ranks.
_LARGEST = 32 << 20
# What this program or DeepSpeed may open in a checkpoint, by whatever name it is looked for.
_OPENED = ("deepspeed/*", "*.pt", "*.json", "*.safetensors", "*.yaml")
# The last line of a manifest: the digest of all before it.
_SEAL = re.compile(rb',\n  "digest": "(' + HEX.encode() + rb')"\n}\n?\Z')

Ranks = Annotated[int, Field(ge=1, le=2**20)]
Digest = Annotated[str, Field(pattern=f"^{HEX}$")]


@dataclass(frozen=True)
class Best:
    """The step at which a held-out loss was the lowest."""

    __pydantic_config__ = STRICT
    metric: Name
    value: float
    step: Natural


@dataclass(frozen=True)
class Progress:
    """Where a run is. Orders and random numbers follow from it, so there is no more to keep."""

    __pydantic_config__ = STRICT
    step: Natural = 0
    samples_seen: Natural = 0
    """Over all ranks."""
    skipped: Natural = 0
    best: Best | None = None
    """So far, by train.keep_best."""


@dataclass(frozen=True)
class Setup:
    """What decides the form of DeepSpeed's files. Where it is the same, they load as they are."""

    __pydantic_config__ = STRICT
    ranks: Ranks
    stage: Annotated[int, Field(ge=0, le=3)]
    offload: tuple[Literal["optimizer", "param"], ...]
    """What lies on the CPU."""
    precision: Literal["fp32", "bf16", "fp16"]
    optimizer: Name

    def __str__(self) -> str:
        ranks = "1 rank" if self.ranks == 1 else f"{self.ranks} ranks"
        parts = [ranks, f"ZeRO-{self.stage}", *(f"{name} on the cpu" for name in self.offload)]
        return ", ".join([*parts, self.precision, self.optimizer])


def setup_of(deepspeed: Mapping[str, Any], optimizer: str, ranks: int) -> Setup:
    """Return the setup of a DeepSpeed config (see `engine.deepspeed_config`)."""
    zero = deepspeed["zero_optimization"]
    precision = [name for name in ("fp16", "bf16") if deepspeed[name]["enabled"]]
    offload: list[Any] = [
        name
        for name in ("optimizer", "param")
        if (zero.get(f"offload_{name}") or {}).get("device", "none") != "none"
    ]
    made: Any = [*precision, "fp32"][0]
    return Setup(ranks, zero["stage"], tuple(offload), made, optimizer)


@dataclass(frozen=True)
class Manifest:
    """The file manifest.json. None: written by a FairHuman that did not yet record it."""

    __pydantic_config__ = STRICT
    ranks: Ranks
    progress: Progress
    files: dict[str, Natural]
    """Every file of the checkpoint but this one, with its size in bytes."""
    setup: Setup | None = None
    global_batch: Annotated[int, Field(ge=1, le=2**53)] | None = None
    """Samples per optimizer step, over all ranks."""
    versions: dict[Name, Name] = field(default_factory=dict)
    base: Name | None = None
    """Digest of the weights that are frozen; None where none are."""
    digests: dict[str, Digest] | None = None
    """SHA-256 of every one of `files`."""

    def write(self, folder: Path) -> None:
        """Write it into a checkpoint's folder; with digests, sealed by one of its own."""
        tree = asdict(self)
        if self.digests is None:
            del tree["digests"]
        text = json.dumps(tree, indent=2)
        if self.digests is not None:
            text = text.removesuffix("\n}")
            seal = hashlib.sha256(text.encode()).hexdigest()
            text += f',\n  "digest": "{seal}"\n}}\n'
        (folder / MANIFEST).write_text(text, encoding="utf-8")


_KIND = TypeAdapter(Manifest)


def read_manifest(folder: Path) -> Manifest:
    """Read a checkpoint's manifest.

    Raises:
        ConfigError: it is missing, was changed since it was written, or says what cannot be.
    """
    path = folder / MANIFEST
    raw = read_limited(path, _LARGEST)
    sealed = _SEAL.search(raw)
    if sealed:
        body = raw[: sealed.start()]
        if hashlib.sha256(body).hexdigest().encode() != sealed[1]:
            raise ConfigError(f"{path}: is not what was written (its digest differs)")
        raw = body + b"\n}"
    manifest = parse_as(_KIND, raw, path)
    for name in manifest.files:
        if not _inside(name):
            raise ConfigError(f"{path}: files: {shown(name)} is no file in the checkpoint")
    if manifest.digests is not None and manifest.digests.keys() != manifest.files.keys():
        raise ConfigError(f"{path}: digests: are not of the same files as sizes")
    if manifest.setup and manifest.setup.ranks != manifest.ranks:
        raise ConfigError(
            f"{path}: setup.ranks = {manifest.setup.ranks}: and ranks is {manifest.ranks}"
        )
    return manifest


def _inside(name: str) -> bool:
    """Return whether a manifest may name this file, as /-separated parts below its folder."""
    path = PurePosixPath(name)
    plain = bool(name) and name.isprintable() and str(path) == name and name != MANIFEST
    return plain and not path.is_absolute() and ".." not in path.parts


def installed() -> dict[str, str]:
    """Return the versions of the packages that write and read checkpoints."""
    return {name: metadata.version(name) for name in _VERSIONS}


def incomplete(folder: Path) -> str | None:
    """Return what a checkpoint lacks or has too much; None if its files are there by their sizes.

    Only names and sizes are looked at, and links are not followed: nothing but the manifest is
    opened, and that only if the folder holds plain files and folders alone. Whoever can change
    the folder between this and the load can still exchange a file.
    """
    try:
        kind = folder.lstat().st_mode
        if stat.S_ISLNK(kind):
            return "is a symbolic link; give the folder that it leads to"
        if not stat.S_ISDIR(kind):
            return f"is no folder (a checkpoint is OUT/{CHECKPOINTS}/step-NNNNNNNN)"
        if not os.path.lexists(folder / MANIFEST):
            return f"is no checkpoint of FairHuman: {MANIFEST} is missing or broken"
        found = dict(_walk(folder))
    except FileNotFoundError:
        return f"there is no such folder (a checkpoint is OUT/{CHECKPOINTS}/step-NNNNNNNN)"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    odd = next((name for name, entry in found.items() if not stat.S_ISREG(entry.st_mode)), None)
    if odd is not None:
        return (
            f"is not taken: {shown(odd)} is {_kind_of(found[odd].st_mode)}, and a checkpoint holds "
            "plain files and folders alone"
        )
    try:
        files = read_manifest(folder).files
    except ConfigError as error:
        reason = str(error).removeprefix(f"{folder / MANIFEST}: ")
        return f"is no checkpoint of FairHuman: {MANIFEST} is missing or broken ({reason})"
    lacking = [name for name in files if name not in found or found[name].st_size != files[name]]
    if lacking:
        return (
            f"is not whole: {shown_key(lacking[0])} is missing or has another size than "
            "when it was written"
        )
    for name in sorted(found.keys() - files.keys() - {MANIFEST}):
        if any(fnmatch.fnmatch(name, pattern) for pattern in _OPENED):
            return f"is not taken: {shown(name)} is not among the files that {MANIFEST} names"
    return None


def missing(folder: Path, files: Mapping[str, int]) -> list[str]:
    """Return the files that are not there, or not with their size in bytes."""
    found = dict(_walk(folder))
    return [name for name in files if name not in found or found[name].st_size != files[name]]


def _walk(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yield all below a folder that is not a folder itself, without following links."""
    prefixes = [""]
    while prefixes:
        prefix = prefixes.pop()
        with os.scandir(folder / prefix) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    prefixes.append(f"{prefix}{entry.name}/")
                else:
                    yield prefix + entry.name, entry.stat(follow_symlinks=False)


def _kind_of(mode: int) -> str:
    if stat.S_ISLNK(mode):
        return "a symbolic link"
    if stat.S_ISFIFO(mode):
        return "a pipe"
    return "a socket" if stat.S_ISSOCK(mode) else "a device"
