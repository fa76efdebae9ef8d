"""What a folder holds as a data set, by the files in it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairhuman.common.distributed import agreed
from fairhuman.common.error_text import reason
from fairhuman.common.errors import DataError
from fairhuman.common.hub import cached_repository
from fairhuman.common.quoting import shown
from fairhuman.data.place import open_folder
from fairhuman.data.stores.arrow import ArrowScanner
from fairhuman.data.stores.folder import METADATA, FolderStore
from fairhuman.data.stores.packed import PackedStore
from fairhuman.data.stores.parquet import ParquetScanner
from fairhuman.data.stores.scan import Scan, Scanner, scan_shards
from fairhuman.data.stores.store import Store
from fairhuman.data.stores.tar import TarScanner

UNFINISHED = ".packing.json"
"""What `fairhuman pack` keeps in its folder until all shards are there."""
_SPLIT = re.compile(r"(.+)-\d{5}-of-\d{5}(?:-[0-9a-f]+)?\.parquet")
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


def open_store(
    root: Path,
    index: str | None = None,
    columns: Mapping[str, str] | None = None,
    section: str = "data",
    split: str | None = None,
) -> Store:
    """Open what a folder holds: files next to metadata.jsonl, or shards; a collective.

    Shards that are not known yet are read for the index.

    Args:
        root: the folder.
        index: `data.index`.
        columns: `data.columns`.
        section: of the config, that names the folder as its `root`; for messages.
        split: `data.split`.

    Raises:
        DataError: it holds shards that cannot be used. What is wrong with a folder of files is
            raised where its rows are read.
        OutputError: the index cannot be written.
    """
    found = agreed(lambda: _find(root, section, split))
    if found is None:
        repository = cached_repository(root)
        return FolderStore(root, section, repository / "blobs" if repository else None)
    scanner, shards = found
    folder = agreed(lambda: open_folder(root, index))
    scans = scan_shards(root, shards, scanner, folder)
    _check_columns(root, scans, columns or {}, section)
    return PackedStore(root, folder, scans)


def _find(root: Path, section: str, split: str | None) -> tuple[Scanner, list[str]] | None:
    """Return the shards of a folder and what reads them; None where it has none."""
    # Of os, which takes a name that is too long for one that is not there.
    if not os.path.isdir(root) or os.path.exists(root / METADATA):
        _refuse_split(root, split, section)
        return None
    try:
        names = sorted(entry.name for entry in root.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(
            f"{section}.root = {str(root)!r}: cannot be read: {reason(error)}"
        ) from None
    if (root / UNFINISHED).exists():
        raise DataError(
            f"{section}.root = {str(root)!r}: is not packed to its end: run `fairhuman pack` again"
        )
    if "dataset_dict.json" in names:
        splits = _json(root / "dataset_dict.json").get("splits")
        first = splits[0] if isinstance(splits, list) and splits else "train"
        raise DataError(
            f"{section}.root = {str(root)!r}: holds several splits ({_list(splits)}): set "
            f"{section}.root to one of them, such as {root / str(first)}"
        )
    if "state.json" in names:
        _refuse_split(root, split, section)
        return ArrowScanner(), _saved_files(root)
    kinds = {
        end: [name for name in names if name.lower().endswith(end)] for end in (".parquet", ".tar")
    }
    if all(kinds.values()):
        raise DataError(
            f"{section}.root = {str(root)!r}: holds .parquet and .tar shards: put one kind in a "
            "folder of its own"
        )
    if kinds[".parquet"]:
        return ParquetScanner(), of_split(str(root), kinds[".parquet"], split, section)
    _refuse_split(root, split, section)
    if packed := [name for name in names if name.lower().endswith(_COMPRESSED)]:
        raise DataError(
            f"{root / packed[0]}: is compressed, and samples are read at random: uncompress it"
        )
    return (TarScanner(), kinds[".tar"]) if kinds[".tar"] else None


def _saved_files(root: Path) -> list[str]:
    """Return the files that a dataset's state.json lists."""
    path = root / "state.json"
    state = _json(path)
    files = state.get("_data_files")
    listed = files if isinstance(files, list) else []
    names = [str(file.get("filename")) for file in listed if isinstance(file, dict)]
    if not names or any(Path(name).name != name for name in names):
        raise DataError(f"{path}: lists no files of a dataset: save it again with save_to_disk")
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise DataError(
            f"{path}: the dataset is a selection of rows: save it again after "
            "dataset.flatten_indices()"
        )
    return names


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {reason(error)}") from None
    return found if isinstance(found, dict) else {}


def of_split(
    root: str, shards: Sequence[str], split: str | None, section: str = "data"
) -> list[str]:
    """Return the Parquet shards of a split: of SPLIT-00000-of-00012.parquet and so on.

    Args:
        root: the data set's, for messages.
        shards: their names, without folders.
        split: the one that is asked for; None: there is one alone.
        section: of the config, that names the data set.

    Raises:
        DataError: there is no such split, or there are several and none is chosen.
    """
    splits = {name: found[1] for name in shards if (found := _SPLIT.fullmatch(name))}
    known = sorted(set(splits.values()))
    if split is None and len(known) > 1:
        first = "train" if "train" in known else known[0]
        raise DataError(
            f"{section}.root = {root!r}: holds several splits ({_list(known)}): set "
            f"{section}.split to one of them, such as {section}.split={first}"
        )
    if split is not None and split not in known:
        raise DataError(
            f"{section}.split = {split!r}: {root} has no shards {split}-00000-of-….parquet"
            + (f"; it has {_list(known)}" if known else "; remove it")
        )
    return [name for name in shards if split is None or splits.get(name) == split]


def _refuse_split(root: Path, split: str | None, section: str) -> None:
    if split is not None:
        raise DataError(
            f"{section}.split = {split!r}: chooses among Parquet shards, and {root} has none; "
            "remove it"
        )


def _check_columns(
    root: Path, scans: tuple[Scan, ...], columns: Mapping[str, str], section: str
) -> None:
    """Check that shards with columns have those that every row needs."""
    needed = [key for key in ("image", "text", "file_name") if key != "file_name" or key in columns]
    for scan in scans:
        for key in needed:
            name = columns.get(key, key)
            if scan.keys is not None and name not in scan.keys:
                raise DataError(
                    f"{root / scan.shard}: has no column {shown(name)} (it has {_list(scan.keys)})"
                    f": set {section}.columns={{{key}: NAME}}"
                )


def _list(names: Any) -> str:
    return ", ".join(map(str, names)) if isinstance(names, list | tuple) else shown(names)
