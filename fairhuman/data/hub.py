"""A data set on the Hugging Face hub: hf://datasets/OWNER/NAME[@REVISION][/FOLDER]."""

from __future__ import annotations

import functools
import glob
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fairhuman.common.distributed import agreed, gathered, local_rank, rank
from fairhuman.common.error_text import first_line
from fairhuman.common.hub import PATIENCE_S, SCHEME, Named, NoAnswerError, ask, repository
from fairhuman.config import Source
from fairhuman.data.stores.choose import of_split
from fairhuman.data.stores.folder import METADATA

_URL = re.compile(
    r"hf://datasets/(?P<name>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?(?:/(?P<folder>.*))?"
)
_FOLDERS = frozenset((METADATA, "state.json"))
"""Files that tell of a data set which is a whole folder, not its shards alone."""
_USUAL = ("", "data", "train")
"""Folders that are looked into where none is named."""


@dataclass(frozen=True)
class HubData:
    """What a URL names."""

    url: str
    name: str
    """OWNER/NAME."""
    revision: str | None
    """A branch, a tag or a commit; None: the default branch."""
    folder: str | None
    split: str | None = None
    section: str = "data"
    """Of the config, that names it."""

    @property
    def named(self) -> Named:
        """The key, for messages."""
        return Named(f"{self.section}.root", self.url)


@dataclass(frozen=True)
class Chosen:
    """A commit of a repository, and what of it is downloaded."""

    commit: str
    folder: str
    """Relative to the repository; empty: all of it."""
    patterns: tuple[str, ...]
    """Of the files in it."""


def local_root(source: Source, section: str = "data") -> Path:
    """Return the folder of a data set, downloaded where it is the hub's; a collective.

    The hub is asked by one rank, and one rank of each machine downloads to the hub's cache.

    Args:
        source: the data set.
        section: of the config, that names it.

    Raises:
        ConfigError: the hub has no such data set, or it cannot be downloaded and is not in the
            cache.
        DataError: it has no such split.
    """
    if not source.root.startswith(SCHEME):
        return Path(source.root)
    found = parse(source.root, source.split, section)
    chosen = gathered(lambda: _choose(found) if rank() == 0 else None)[0]
    assert chosen is not None
    agreed(lambda: _snapshot(found, chosen) if local_rank() == 0 else None)
    return agreed(lambda: _snapshot(found, chosen, on_disk=True)) / chosen.folder


def parse(url: str, split: str | None = None, section: str = "data") -> HubData:
    """Return what a URL names.

    Args:
        url: hf://….
        split: of its Parquet shards.
        section: of the config, that names it.

    Raises:
        ConfigError: it names no data set.
    """
    found = _URL.fullmatch(url)
    folder = (found["folder"] or "").strip("/") if found else ""
    try:
        if found is None or ".." in folder.split("/"):
            raise ValueError
        name = repository(found["name"])
    except ValueError:
        Named(f"{section}.root", url).refuse(
            "is no data set on the hub: write hf://datasets/OWNER/NAME, then @REVISION and /FOLDER "
            "if need be"
        )
    return HubData(url, name, found["revision"], folder or None, split, section)


@functools.cache
def _choose(data: HubData) -> Chosen:
    """Ask the hub for the commit and the names of its files; kept, so that a run has one commit."""
    try:
        info = ask(
            data.named,
            lambda api: api.dataset_info(data.name, revision=data.revision, timeout=PATIENCE_S),
        )
    except NoAnswerError as problem:
        folder = _cached(data)
        if folder is None:
            data.named.refuse(f"is not in the hub's cache, and the hub {problem}")
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
        return _of(data, folder.name, names)
    return _of(data, info.sha, [file.rfilename for file in info.siblings or ()])


def _of(data: HubData, commit: str, names: Iterable[str]) -> Chosen:
    folders: dict[str, list[str]] = {}
    for name in names:
        folder, _, file = name.rpartition("/")
        folders.setdefault(folder, []).append(file)
    asked = _USUAL if data.folder is None else (data.folder,)
    found = next((folder for folder in asked if _holds_data(folders.get(folder, ()))), None)
    if found is None:
        others = sorted(folder for folder, files in folders.items() if _holds_data(files))
        hint = f"; add one of its folders: {', '.join(others[:5])}" if others else ""
        data.named.refuse(f"there is no {METADATA}, Parquet or tar{hint}")
    files, start = folders[found], f"{found}/" if found else ""
    if _FOLDERS.intersection(files):
        return Chosen(commit, found, (f"{start}*",))
    shards = [file for file in files if file.endswith(".parquet")]
    shards = of_split(data.url, shards, data.split, data.section) if shards else files
    return Chosen(commit, found, tuple(glob.escape(f"{start}{file}") for file in shards))


def _holds_data(files: Iterable[str]) -> bool:
    return any(file in _FOLDERS or file.lower().endswith((".parquet", ".tar")) for file in files)


def _cached(data: HubData) -> Path | None:
    """Return what is in the hub's cache of a repository, which may be a part of it."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(
            HfApi().snapshot_download(
                data.name,
                repo_type="dataset",
                revision=data.revision,
                allow_patterns=[],
                local_files_only=True,
            )
        )
    except LocalEntryNotFoundError:
        return None


def _snapshot(data: HubData, chosen: Chosen, on_disk: bool = False) -> Path:
    """Return the folder of a repository's files, downloaded where they are not `on_disk`."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        folder = Path(
            HfApi().snapshot_download(
                data.name,
                repo_type="dataset",
                revision=data.revision,
                allow_patterns=list(chosen.patterns),
                local_files_only=on_disk,
            )
        )
    except (OSError, HfHubHTTPError) as error:
        data.named.refuse(f"cannot be downloaded from the hub: {first_line(error)}")
    if folder.name != chosen.commit:
        data.named.refuse(
            "is of another commit on another machine, or has just changed: name one by @REVISION"
        )
    return folder
