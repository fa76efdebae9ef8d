"""Where a model is that a key names: a folder or file here, or OWNER/NAME[@REVISION] on the hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from fairhuman.common.error_text import first_line
from fairhuman.common.errors import ConfigError

T = TypeVar("T")

PATIENCE_S = 10.0
"""How long the hub may take to say that it has a repository."""
SCHEME = "hf://"
"""Of the hub's addresses."""
_REVISION = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*")
_FILES = (".safetensors", ".ckpt", ".bin", ".pt", ".pth", ".json", ".yaml")


@dataclass(frozen=True)
class Named:
    """A key and what it says, for messages."""

    key: str
    value: str

    def __str__(self) -> str:
        value = self.value if len(self.value) <= 200 else f"{self.value[:200]}…"
        return f"{self.key} {value!r}" if self.key.startswith("--") else f"{self.key} = {value!r}"

    def refuse(self, why: object) -> NoReturn:
        """Raise the ConfigError that names the key, the value and why it cannot be used."""
        raise ConfigError(f"{self}: {why}")


@dataclass(frozen=True)
class Place:
    """Where a model is."""

    path: Path
    """A folder or file; of a hub's repository, its snapshot in the cache, with the configs."""
    whole: bool
    """Whether all of it must be there: not so in the hub's cache."""
    source: str
    """What `from_pretrained` loads it from: the path, or its name on the hub."""
    revision: str | None = None
    """A branch, a tag or a commit; None: the default branch, or not the hub's."""
    offline: bool = False
    """Load it from the hub's cache without asking the hub."""

    @property
    def options(self) -> dict[str, Any]:
        """What `from_pretrained` is to be told besides the source."""
        revision = {"revision": self.revision} if self.revision else {}
        return {"local_files_only": self.offline, **revision}


def locate(named: Named, ask_hub: bool = True) -> Place | None:
    """Find a model; of a hub's repository, fetch the configs.

    The hub is asked once, for seconds at most: diffusers' own way tries for half a minute.

    Args:
        named: the key, with a folder, a file or a hub name.
        ask_hub: otherwise a model that is not on this machine is None.

    Raises:
        ConfigError: there is no such model, or the hub cannot be asked.
    """
    path = _existing(named)
    if path:
        return Place(path, whole=True, source=named.value)
    name, revision = _on_the_hub(named)
    cached = _cached(name, revision)
    offline = Place(cached, False, name, revision, offline=True) if cached else None
    if not ask_hub:
        return offline
    try:
        ask(
            named,
            lambda api: _check_model(api, name, revision),
            "there is no such folder or file here",
        )
    except NoAnswerError as problem:
        if offline is None:
            named.refuse(
                f"is no folder or file here, is not in the hub's cache, and the hub {problem}"
            )
        return offline
    return Place(_configs(named, name, revision), False, name, revision)


def locate_file(named: Named, choose: Callable[[Sequence[str]], str]) -> Path:
    """Find a file of a model repository on the hub, downloaded to the hub's cache.

    Args:
        named: the key, with what is no path here.
        choose: given the names of the repository's files, returns that of the file; may refuse.

    Raises:
        ConfigError: there is no such repository, or it cannot be downloaded and is not in the
            cache.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name, revision = _on_the_hub(named)
    of: dict[str, Any] = {"repo_id": name, "revision": revision}
    api = HfApi()
    here = "there is no such folder or file here"
    try:
        info = ask(named, lambda api: api.model_info(**of, timeout=PATIENCE_S), here)
        file = choose([file.rfilename for file in info.siblings or ()])
        return Path(api.hf_hub_download(filename=file, **of))
    except NoAnswerError as problem:
        try:
            folder = api.snapshot_download(**of, allow_patterns=[], local_files_only=True)
        except LocalEntryNotFoundError:
            named.refuse(f"{here}, it is not in the hub's cache, and the hub {problem}")
        names = [str(path.relative_to(folder)) for path in Path(folder).rglob("*")]
        return Path(folder) / choose(names)
    except (OSError, HfHubHTTPError) as error:
        named.refuse(f"cannot be downloaded from the hub: {first_line(error)}")


def repository(name: str) -> str:
    """Return the name of a repository on the hub.

    Raises:
        ValueError: it cannot be one.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        pass
    else:
        if "/" in name:
            return name
    revision = ", without a revision" if "@" in name else ""
    raise ValueError(
        f"must be the name of a repository on the Hugging Face hub, owner/name{revision}"
    )


def split_revision(value: str) -> tuple[str, str | None]:
    """Return a hub name without its revision, and the revision, if it has one."""
    name, _, revision = value.partition("@")
    return name, revision or None


def _existing(named: Named) -> Path | None:
    name = named.value
    if not name.strip() or not name.isprintable():
        named.refuse("is no name of a model")
    path = Path(name)
    try:
        # A special file, such as a pipe, is neither.
        if path.is_dir() or path.is_file():
            return path
        there = path.exists()
    except OSError as error:  # a name that is too long, a folder that may not be read
        named.refuse(error.strerror)
    if there:
        named.refuse("is neither a folder nor a file")
    return None


def _on_the_hub(named: Named) -> tuple[str, str | None]:
    """Return the name and the revision of what is not on this machine."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    name, revision = split_revision(named.value)
    path = name.startswith(("/", ".", "~")) or name.endswith(("/", *_FILES)) or name.count("/") > 1
    if path or named.value.endswith(_FILES):
        home = "; ~ is not expanded, write the whole path" if name.startswith("~") else ""
        named.refuse(f"there is no such folder or file{home}")
    try:
        validate_repo_id(name)
    except HFValidationError:
        named.refuse("there is no such folder or file, and it cannot be a hub name")
    if "@" in named.value and not _REVISION.fullmatch(revision or ""):
        named.refuse("a branch, a tag or a commit must follow the @")
    return name, revision


def _cached(name: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    for file in ("model_index.json", "config.json"):
        found = try_to_load_from_cache(name, file, revision=revision)
        if isinstance(found, str):
            return Path(found).parent
    return None


class NoAnswerError(Exception):
    """Why the hub has given no answer, to follow the words "the hub"."""


def ask(named: Named, question: Callable[[Any], T], here: str = "") -> T:
    """Ask the hub about the repository that a key names.

    Args:
        named: the key.
        question: given the hub's client, returns the answer.
        here: what to say first of a repository that is not there.

    Raises:
        ConfigError: it has none of that name, or does not let this user have it.
        NoAnswerError: it cannot be asked.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if HF_HUB_OFFLINE:
        raise NoAnswerError("may not be asked (HF_HUB_OFFLINE is set)")
    try:
        return question(HfApi())
    except GatedRepoError:
        named.refuse(
            "is gated on the hub: ask for access on its page there, then log in with `hf auth "
            "login` or set HF_TOKEN"
        )
    except RepositoryNotFoundError:
        named.refuse(
            f"{here}{', and ' if here else 'there is '}no such repository on the hub that this "
            "user may see (for a private one, log in with `hf auth login` or set HF_TOKEN)"
        )
    except RevisionNotFoundError:
        named.refuse(
            "the repository on the hub has no such revision: write one of its branches, tags or "
            "commits after the @, or nothing for its default branch"
        )
    except Exception as error:  # those of the client's HTTP library depend on its version
        raise NoAnswerError(no_answer(error)) from error


def _check_model(api: Any, name: str, revision: str | None) -> None:
    if api.model_info(name, revision=revision, timeout=PATIENCE_S).gated:
        api.auth_check(name)


def no_answer(error: Exception) -> str:
    """Return what an error of the hub's client says of the hub, to follow the words "the hub"."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        status = getattr(error.response, "status_code", "an error")
        told = (error.server_message or "").strip()
        return f"answers with {status}" + (f": {told.splitlines()[0][:200]}" if told else "")
    if isinstance(error, ValueError):
        return f"does not take it: {first_line(error)}"
    return f"cannot be reached ({type(error).__name__})"


def _configs(named: Named, name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        patterns = ["*.json", "*.txt"]
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (OSError, HfHubHTTPError) as error:
        named.refuse(f"cannot be had from the hub: {first_line(error)}")


def cached_repository(folder: Path) -> Path | None:
    """Return the folder in the hub's cache that keeps a repository's files and snapshots.

    Args:
        folder: a snapshot, or a folder in one; of another folder None is returned.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    cache, folder = Path(HF_HUB_CACHE).absolute(), folder.absolute()
    if not folder.is_relative_to(cache) or folder == cache:
        return None
    return cache / folder.relative_to(cache).parts[0]
