"""Which samples go into which shard, and what the shards' columns hold."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from fairhuman.curation.packing.samples import Sample

TEXT, JSON, BOXES = "text", "json", "boxes"
WHOLE, REAL, TRUTH = "int", "float", "bool"


@dataclass
class Plan:
    """What is to be written."""

    counts: list[int] = field(default_factory=list)
    """Samples by shard."""
    kinds: dict[str, str] = field(default_factory=dict)
    """What each key holds: TEXT, BOXES, WHOLE, REAL, TRUTH; JSON where it is anything else."""
    files: dict[str, None] = field(default_factory=dict)
    """The keys of files, in the order in which they come."""
    bytes: int = 0
    digest: str = ""
    """Of the rows and of the files' sizes and times of change."""


def make_plan(samples: Iterable[Sample], shard_bytes: int) -> Plan:
    """Divide samples into shards; one is full with the sample that brings it to `shard_bytes`."""
    plan, filled = Plan(), shard_bytes
    digest = hashlib.blake2b(digest_size=16)
    for sample in samples:
        if filled >= shard_bytes:
            plan.counts.append(0)
            filled = 0
        plan.counts[-1] += 1
        filled += sample.bytes
        plan.bytes += sample.bytes
        for key, value in sample.fields.items():
            plan.kinds[key] = _joined(plan.kinds.get(key), _kind(value))
        plan.files |= dict.fromkeys(sample.files)
        stats = [[key, found.st_size, found.st_mtime_ns] for key, found in sample.stats.items()]
        digest.update(json.dumps([sample.fields, sample.files, stats]).encode())
    plan.digest = digest.hexdigest()
    return plan


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return TEXT
    if isinstance(value, bool):
        return TRUTH
    if isinstance(value, int):
        return WHOLE if -(2**63) <= value < 2**63 else JSON
    if isinstance(value, float):
        return REAL
    return BOXES if _are_boxes(value) else JSON


def _are_boxes(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(box, list) and all(_kind(number) in (WHOLE, REAL) for number in box)
        for box in value
    )


def _joined(first: str | None, second: str) -> str:
    """Return the kind of column that holds values of both kinds."""
    if first is None or first == second:
        return second
    return REAL if {first, second} == {WHOLE, REAL} else JSON
