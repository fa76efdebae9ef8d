"""Files that are there whole or not at all, and a disk's errors as one line."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from fairhuman.common.error_text import reason
from fairhuman.common.errors import OutputError

PARTIAL = ".partial"


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, in place of what was there.

    Raises:
        OutputError: it cannot be written; what was there still is.
    """
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, in place of what was there.

    Raises:
        OutputError: it cannot be written; what was there still is.
    """
    with replacing(path) as aside:
        aside.write_bytes(content)


@contextmanager
def replacing(
    path: Path, *, shared: bool = False, sync: bool = True, any_kind: bool = False
) -> Iterator[Path]:
    """Give a name next to `path` for a file or a folder, which then takes the place of `path`.

    Whatever ends the body early, nothing is left under that name.

    Args:
        path: where it belongs.
        shared: whether several processes may write the same path at the same time.
        sync: whether to wait until it is on the disk; without, a power cut may leave it cut short.
        any_kind: whether a file may take the place of a folder, and a folder that of a link to one.

    Raises:
        OutputError: the body or the renaming failed to write; what was there still is.
    """
    token = f".{secrets.token_hex(8)}" if shared else ""
    aside = path.with_name(f"{path.name}{token}{PARTIAL}")
    with as_output_error(path):
        try:
            remove(aside)
            yield aside
            if sync:
                _sync_tree(aside)
            if path.is_dir() and (any_kind or (aside.is_dir() and not path.is_symlink())):
                _replace_folder(aside, path)
            else:
                os.replace(aside, path)
            if sync:
                sync_path(path.parent)
        except BaseException:
            with suppress(OSError):  # the first error is the one to show
                remove(aside)
            raise


def _replace_folder(aside: Path, path: Path) -> None:
    """Do for a folder at `path` what os.replace does for a file."""
    former = path.with_name(f"{path.name}.former")
    remove(former)
    os.rename(path, former)
    try:
        os.rename(aside, path)
    except BaseException:
        os.rename(former, path)
        raise
    remove(former)


@contextmanager
def as_output_error(path: Path | str, what: str = "cannot be written") -> Iterator[None]:
    """Turn a disk's error, as the writers of the libraries put it, into an OutputError.

    Args:
        path: what is being written; it begins the message.
        what: is wrong with it.

    Raises:
        OutputError: the body met an error of the disk. Others pass as they are.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise OutputError(f"{path}: {what}: {reason(error)}") from error
    except RuntimeError as error:
        if "PytorchStreamWriter" in str(error) or "inline_container" in str(error):
            raise OutputError(f"{path}: {what}: {reason(error)}") from error  # from torch.save
        raise


def free_bytes(path: Path) -> int:
    """Return what is free on the disk that a path is on, or would be.

    Raises:
        OSError: the file system does not tell.
    """
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    return shutil.disk_usage(there).free


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync_tree(path: Path) -> None:
    if path.is_dir():
        for inner in path.rglob("*"):
            sync_path(inner)
    sync_path(path)


def sync_path(path: Path) -> None:
    """Wait until a file or a folder's entries are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
