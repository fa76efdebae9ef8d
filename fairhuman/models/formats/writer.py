"""Write safetensors with one tensor in memory at a time, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from fairhuman.common.errors import OutputError, UserError
from fairhuman.common.files import as_output_error, replacing
from fairhuman.models.formats.weights import DTYPE_NAMES, Source

_HASH = "modelspec.hash_sha256"
_NO_HASH = "0x" + "0" * 64


@contextmanager
def written_aside(path: Path, *, force: bool) -> Iterator[Path]:
    """Give a path to write to, a file's or a folder's; at the end it takes the place of `path`.

    After an error, a full disk or Ctrl-C, `path` is as it was and nothing is left next to it.

    Raises:
        UserError: `path` is there and `force` is not given.
        OutputError: it cannot be written.
    """
    if path.exists() and not force:
        raise UserError(f"{path}: already exists; choose another --out or add --force")
    if path.is_dir() and not (path / "model_index.json").is_file():
        raise UserError(f"{path}: is a folder and no pipeline; --force does not replace it")
    try:
        with as_output_error(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, any_kind=True) as aside:
            yield aside
    except OutputError as error:
        raise OutputError(f"{error}; nothing was changed") from error


def write_safetensors(
    path: Path,
    tensors: Mapping[str, Source],
    metadata: Mapping[str, str],
    dtype: torch.dtype | None = None,
) -> None:
    """Write tensors in the order that safetensors itself uses, cast to `dtype` if floating.

    Single numbers, such as the alphas of a LoRA, are not weights and keep their dtype.

    If the metadata have ModelSpec's keys, the hash of the tensors is added.

    Raises:
        UserError: a finite value is not finite in `dtype`; the disk has too little space.
    """
    dtypes = {name: _stored(source, dtype) for name, source in tensors.items()}
    order = sorted(tensors, key=lambda name: (-dtypes[name].itemsize, name))
    sizes = {name: prod(tensors[name].shape) * dtypes[name].itemsize for name in order}
    metadata = {**metadata}
    if "modelspec.sai_model_spec" in metadata:
        metadata[_HASH] = _NO_HASH
    _need_space(path, sum(sizes.values()))
    digest = hashlib.sha256()
    with path.open("wb") as file:
        file.write(_header(order, tensors, dtypes, sizes, metadata))
        for name in order:
            content = _bytes(_cast(name, tensors[name].read(), dtypes[name]))
            digest.update(content)
            file.write(content)
        if _HASH in metadata:
            metadata[_HASH] = f"0x{digest.hexdigest()}"
            file.seek(0)
            file.write(_header(order, tensors, dtypes, sizes, metadata))


def _header(
    order: list[str],
    tensors: Mapping[str, Source],
    dtypes: Mapping[str, torch.dtype],
    sizes: Mapping[str, int],
    metadata: Mapping[str, str],
) -> bytes:
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    start = 0
    for name in order:
        header[name] = {
            "dtype": DTYPE_NAMES[dtypes[name]],
            "shape": list(tensors[name].shape),
            "data_offsets": [start, start + sizes[name]],
        }
        start += sizes[name]
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of eight bytes
    return len(text).to_bytes(8, "little") + text


def _stored(source: Source, wanted: torch.dtype | None) -> torch.dtype:
    weight = source.shape and source.dtype.is_floating_point
    return wanted if wanted is not None and weight else source.dtype


def _cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    cast = tensor.to(dtype)
    if cast.is_floating_point() and torch.finfo(dtype).max < torch.finfo(tensor.dtype).max:
        lost = int((~torch.isfinite(cast) & torch.isfinite(tensor)).sum())
        if lost:
            raise UserError(f"{name}: {lost} values are too large for {dtype}; use --dtype fp32")
    return cast


def _bytes(tensor: Tensor) -> memoryview:
    content: memoryview = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
    return content


def _need_space(path: Path, size: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise OutputError(
            f"{path.parent}: {size / 1e6:,.0f} MB are needed and {free / 1e6:,.0f} MB are free"
        )
