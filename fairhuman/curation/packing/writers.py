"""The two kinds of shards as they are written: byte for byte the same from the same samples."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from fairhuman.common.images import SUFFIXES, UNOPENABLE
from fairhuman.curation.packing.plan import BOXES, JSON, REAL, TEXT, TRUTH, WHOLE, Plan
from fairhuman.curation.packing.samples import IMAGE, Sample
from fairhuman.data.records import CONTROL
from fairhuman.data.stores.tar import PLAIN

GROUP_ROWS, GROUP_BYTES = 64, 2**27
"""Of a row group of Parquet: one is in memory while it is written, and read again by `datasets`."""


class Writer(Protocol):
    """Writes shards of one kind."""

    @property
    def suffix(self) -> str:
        """Of their names."""

    def write(self, path: Path, root: Path, first: int, samples: Iterable[Sample]) -> None:
        """Write a shard.

        Args:
            path: the shard's.
            root: the folder that the samples' files are in.
            first: the number of the first sample in the data set.
            samples: its.

        Raises:
            OSError: a file cannot be read, or the shard not be written.
        """


class TarWriter:
    """Writes WebDataset's tars: `000000007.jpg`, `000000007.json`, `000000007.face.png`."""

    suffix = ".tar"

    def write(self, path: Path, root: Path, first: int, samples: Iterable[Sample]) -> None:
        """See `Writer`."""
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for number, sample in enumerate(samples, start=first):
                row = json.dumps(sample.fields, ensure_ascii=False).encode()
                _add(tar, f"{number:09d}.json", row)
                for key, name in sample.files.items():
                    _add(tar, f"{number:09d}{_ending(key, name)}", (root / name).read_bytes())


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _ending(key: str, name: str) -> str:
    """Return what follows the number in the name of a picture's member."""
    suffix = PurePosixPath(name).suffix.lower()
    if suffix not in SUFFIXES | UNOPENABLE:
        suffix = PLAIN
    if key == IMAGE:
        return suffix
    region = key.removesuffix("_mask")
    return f".{key if region == CONTROL or region.endswith('_mask') else region}{suffix}"


class ParquetWriter:
    """Writes Parquet as `datasets` does: a column `image` of struct{bytes, path}, and so on.

    Pictures are not compressed, which they are already, so that each can be read from its place.
    """

    suffix = ".parquet"

    def __init__(self, plan: Plan) -> None:
        self._kinds, self._files = plan.kinds, list(plan.files)
        fields = [(key, _TYPES[kind]) for key, kind in plan.kinds.items()]
        features = {key: _FEATURES[kind] for key, kind in plan.kinds.items()}
        features |= {key: {"_type": "Image"} for key in self._files}
        told = {"huggingface": json.dumps({"info": {"features": features}})}
        self._schema = pa.schema([*fields, *((key, _PICTURE) for key in self._files)], told)

    def write(self, path: Path, root: Path, first: int, samples: Iterable[Sample]) -> None:
        """See `Writer`."""
        with pq.ParquetWriter(
            str(path),
            self._schema,
            compression="NONE",
            use_dictionary=False,
            write_statistics=False,
        ) as file:
            for group in _groups(samples):
                rows = [self._row(sample, root) for sample in group]
                file.write_table(pa.Table.from_pylist(rows, self._schema), GROUP_ROWS)

    def _row(self, sample: Sample, root: Path) -> dict[str, Any]:
        row: dict[str, Any] = {
            key: json.dumps(value) if self._kinds[key] == JSON else value
            for key, value in sample.fields.items()
        }
        for key, name in sample.files.items():
            row[key] = {"bytes": (root / name).read_bytes(), "path": name}
        return row


_PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_TYPES = {
    TEXT: pa.string(),
    JSON: pa.string(),
    BOXES: pa.list_(pa.list_(pa.float64())),
    WHOLE: pa.int64(),
    REAL: pa.float64(),
    TRUTH: pa.bool_(),
}
_FEATURES: dict[str, Any] = {
    TEXT: {"dtype": "string", "_type": "Value"},
    JSON: {"dtype": "string", "_type": "Value"},
    BOXES: [[{"dtype": "float64", "_type": "Value"}]],
    WHOLE: {"dtype": "int64", "_type": "Value"},
    REAL: {"dtype": "float64", "_type": "Value"},
    TRUTH: {"dtype": "bool", "_type": "Value"},
}


def _groups(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    group: list[Sample] = []
    for sample in samples:
        group.append(sample)
        if len(group) == GROUP_ROWS or sum(one.bytes for one in group) >= GROUP_BYTES:
            yield group
            group = []
    if group:
        yield group
