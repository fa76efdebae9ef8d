"""`fairhuman pack`: write a data set's folder as shards with everything inside."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from fairhuman.common.errors import DataError, OutputError
from fairhuman.common.files import as_output_error, free_bytes, replacing, write_text
from fairhuman.common.lock import LOCK, FolderLock
from fairhuman.common.units import GIB
from fairhuman.curation.packing.plan import Plan, make_plan
from fairhuman.curation.packing.samples import read_samples
from fairhuman.curation.packing.writers import ParquetWriter, TarWriter, Writer
from fairhuman.data.stores.choose import UNFINISHED

VERSION = 1
"""To be raised when the same samples come to give other shards."""
KINDS = ("parquet", "webdataset")


@dataclass(frozen=True)
class Packed:
    """What is in the folder now."""

    images: int
    shards: int
    kept: int
    """Shards that an earlier run had written."""
    bytes: int
    """Of the pictures."""


def pack(root: Path, out: Path, kind: str, shard_bytes: int, columns: Mapping[str, str]) -> Packed:
    """Write the samples of a folder into shards, in their order, with all files that they name.

    Each shard is there whole or not at all. A run that was stopped continues, unless the folder has
    changed meanwhile.

    Args:
        root: a folder with metadata.jsonl.
        out: the shards' folder; empty, or that of a run that was stopped.
        kind: one of KINDS.
        shard_bytes: how large a shard becomes before the next is begun.
        columns: other names of metadata.jsonl's keys, by ours: the shards have ours.

    Raises:
        DataError: the folder cannot be packed, each mistake in a line.
        OutputError: a shard cannot be written, or `out` holds something else.
    """
    plan = make_plan(read_samples(root, columns), shard_bytes)
    if not plan.counts:
        raise DataError(f"{root}: holds no image")
    writer: Writer = ParquetWriter(plan) if kind == "parquet" else TarWriter()
    told = {
        "version": VERSION,
        "kind": kind,
        "shard_bytes": shard_bytes,
        "columns": dict(columns),
        "source": plan.digest,
    }
    with FolderLock(out, "packing"):
        names = _names(len(plan.counts), writer.suffix)
        _claim(out, told)
        kept = [(out / name).exists() for name in names]
        _check_room(out, plan, kept)
        samples = read_samples(root, columns)
        first = 0
        for name, count, there in zip(
            tqdm(names, "packing", unit="shard", delay=2), plan.counts, kept, strict=True
        ):
            part = islice(samples, count)
            if there:
                list(part)
            else:
                with replacing(out / name) as aside:
                    writer.write(aside, root, first, part)
            first += count
        with as_output_error(out):
            (out / UNFINISHED).unlink()
    return Packed(first, len(names), sum(kept), plan.bytes)


def _names(count: int, suffix: str) -> list[str]:
    """Return the shards' names, which sort in their order."""
    width = max(5, len(str(count - 1)))
    return [f"{number:0{width}d}{suffix}" for number in range(count)]


def _claim(out: Path, told: Mapping[str, object]) -> None:
    """See that the folder is empty, or of a run that was stopped before it was done with this."""
    path, text = out / UNFINISHED, json.dumps(told)
    with as_output_error(out):
        there = sorted(name for name in os.listdir(out) if name != LOCK)
        found = path.read_text() if path.exists() else None
    if found == text:
        return
    if found is not None:
        raise OutputError(
            f"{out}: holds what was packed in part from other files, or otherwise: remove it, or "
            "choose another folder"
        )
    if there:
        raise OutputError(f"{out}: is not empty ({there[0]}): choose another folder")
    write_text(path, text)


def _check_room(out: Path, plan: Plan, kept: list[bool]) -> None:
    left = plan.bytes * (len(kept) - sum(kept)) // len(kept)
    with as_output_error(out):
        free = free_bytes(out)
    if left > free:
        raise OutputError(
            f"{out}: about {left / GIB:.1f} GiB are to be written, and {free / GIB:.1f} GiB are "
            "free: choose a folder on a larger disk"
        )
