"""A checkpoint on the Hugging Face hub: hf://OWNER/NAME[@REVISION][/FOLDER], brought into OUT."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

from fairhuman.checkpointing.manifest import Manifest, incomplete, read_manifest
from fairhuman.common.error_text import first_line
from fairhuman.common.errors import ConfigError, OutputError
from fairhuman.common.files import PARTIAL, free_bytes, remove, replacing
from fairhuman.common.hub import PATIENCE_S, Named, NoAnswerError, ask, repository
from fairhuman.common.run_folder import CHECKPOINTS, MANIFEST, checkpoint_folder
from fairhuman.common.units import GIB

_URL = re.compile(
    r"hf://(?!(?:datasets|spaces)/)(?P<name>[^/@]+/[^/@]+)"
    r"(?:@(?P<revision>[^/@]+))?(?:/(?P<folder>[^@]*))?"
)
_STEP = re.compile(CHECKPOINTS + r"/step-\d{8}")


def fetch(output: Path, url: str, last: Path | None) -> Path:
    """Download a checkpoint into a run's folder, unless it is there; to be called on one rank.

    A download that is cut short is continued by the next call. The contents are not compared with
    their digests here.

    Args:
        output: the run's folder.
        url: hf://…; without a folder, the repository's newest checkpoint.
        last: the run's newest checkpoint.

    Returns:
        OUT/checkpoints/step-NNNNNNNN.

    Raises:
        ConfigError: the hub has no such checkpoint or cannot be asked, or the run has another one.
        OutputError: it cannot be written.
    """
    named = Named("train.resume", url)
    name, revision, folder = _parse(named)
    try:
        info = ask(named, lambda api: api.model_info(name, revision=revision, timeout=PATIENCE_S))
    except NoAnswerError as problem:
        named.refuse(f"the hub {problem}; try again, or give a checkpoint's folder here")
    folder = _choose(named, folder, [file.rfilename for file in info.siblings or ()])
    there = _Checkpoint(named, name, info.sha, folder)
    manifest = there.manifest()
    target = checkpoint_folder(output, manifest.progress.step)
    if last is not None:
        if last == target and read_manifest(last) == manifest:
            return target
        named.refuse(
            f"{output} holds a run that went on to {last.name}; set train.resume=auto to continue "
            "it, or choose another train.output_dir for what follows from here"
        )
    _check_room(output, named, manifest)
    there.download(target, manifest)
    return target


class _Checkpoint:
    """A folder of a commit on the hub, that the key `named` gives."""

    def __init__(self, named: Named, name: str, commit: str, folder: str) -> None:
        from huggingface_hub import HfApi

        self.named, self.name, self.commit, self.folder = named, name, commit, folder
        self.start = f"{folder}/" if folder else ""
        self._api = HfApi()

    def manifest(self) -> Manifest:
        """Return its manifest."""
        file = f"{self.start}{MANIFEST}"
        with TemporaryDirectory() as place:
            try:
                self._api.hf_hub_download(self.name, file, revision=self.commit, local_dir=place)
            except Exception as error:  # those of the client's HTTP library depend on its version
                self._refuse(error)
            try:
                return read_manifest(Path(place, self.folder))
            except ConfigError as error:
                self.named.refuse(str(error).removeprefix(f"{place}/"))

    def download(self, target: Path, manifest: Manifest) -> None:
        """Download it, whole or not at all."""
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        fetched = target.with_name(f"{target.name}.fetched{PARTIAL}")
        files = [glob.escape(f"{self.start}{name}") for name in (*manifest.files, MANIFEST)]
        with replacing(target) as aside:
            try:
                self._api.snapshot_download(
                    self.name, revision=self.commit, allow_patterns=files, local_dir=fetched
                )
            except (HfHubHTTPError, LocalEntryNotFoundError) as error:
                self._refuse(error)
            except OSError:  # the disk's
                raise
            except Exception as error:
                self._refuse(error)
            remove(fetched / ".cache")  # the client's notes
            if problem := incomplete(fetched / self.folder):
                remove(fetched)
                self.named.refuse(f"{self.folder or 'the repository'} {problem}")
            (fetched / self.folder).rename(aside)
            remove(fetched)

    def _refuse(self, error: Exception) -> NoReturn:
        self.named.refuse(f"cannot be downloaded from the hub: {first_line(error)}; try again")


def _parse(named: Named) -> tuple[str, str | None, str | None]:
    """Return the repository, the revision and the folder that a URL names."""
    found = _URL.fullmatch(named.value)
    folder = (found["folder"] or "").strip("/") if found else ""
    try:
        if found is None or ".." in folder.split("/"):
            raise ValueError
        return repository(found["name"]), found["revision"], folder or None
    except ValueError:
        named.refuse(
            "is no checkpoint on the hub: write hf://OWNER/NAME, then @REVISION and "
            f"/{CHECKPOINTS}/step-NNNNNNNN if need be"
        )


def _choose(named: Named, folder: str | None, files: Iterable[str]) -> str:
    """Return the folder of the checkpoint that is asked for, or of the newest."""
    found = sorted(
        name for name, _, file in (file.rpartition("/") for file in files) if file == MANIFEST
    )
    if folder is None:  # at the top, if there is no step
        folder = max(filter(_STEP.fullmatch, found), default="")
    if folder not in found:
        asked = f"no checkpoint {folder}" if folder else f"no {CHECKPOINTS}/step-NNNNNNNN"
        others = f"; there is {', '.join(found[-5:])}" if any(found) else ""
        named.refuse(f"the repository on the hub holds {asked} with a {MANIFEST}{others}")
    return folder


def _check_room(output: Path, named: Named, manifest: Manifest) -> None:
    size = sum(manifest.files.values())
    with suppress(OSError):  # a file system that does not tell
        free = free_bytes(output)
        if size > free:
            raise OutputError(
                f"{named}: the checkpoint takes {size / GIB:.2f} GiB, and the disk of "
                f"train.output_dir has {free / GIB:.2f} GiB free; free some, or choose another disk"
            )
