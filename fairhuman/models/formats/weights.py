"""Read tensors one at a time from files, of which only safetensors are trusted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fairhuman.common.error_text import first_line
from fairhuman.common.errors import UserError

PICKLED = (".ckpt", ".bin", ".pt", ".pth")
"""The suffixes of files that torch.save writes: they may hold code."""

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
"""safetensors' names of the dtypes."""


@dataclass(frozen=True)
class Source:
    """A tensor that has not been read yet."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]


def changed(part: Source, shape: tuple[int, ...], change: Callable[[Tensor], Tensor]) -> Source:
    """Return a tensor that is changed when it is read, to `shape`."""
    return Source(shape, part.dtype, lambda: change(part.read()))


def joined(parts: Sequence[Source]) -> Source:
    """Return tensors of one dtype as one, along their first dimension."""
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    return Source(shape, parts[0].dtype, lambda: torch.cat([part.read() for part in parts]))


@dataclass(frozen=True)
class Weights:
    """The tensors of one model, and what its files' headers say."""

    tensors: Mapping[str, Source]
    metadata: Mapping[str, str]


@contextmanager
def open_weights(path: Path, *, allow_pickle: bool = False) -> Iterator[Weights]:
    """Open a file of weights, or the index of a sharded one; tensors are read on demand.

    Raises:
        UserError: there is no such file, it is damaged, or it is pickled and may not be read.
    """
    with ExitStack() as stack:
        if path.name.endswith(".index.json"):
            tensors: dict[str, Source] = {}
            for shard in _shards(path):
                tensors |= stack.enter_context(open_weights(shard)).tensors
            yield Weights(tensors, {})
        elif path.suffix in PICKLED:
            yield Weights(_pickled(path, allow_pickle), {})
        else:
            yield _safetensors(path, stack)


def weights_in(folder: Path, *, allow_pickle: bool = False) -> Path:
    """Return the file, or the index, that holds the weights of one model of a pipeline.

    Raises:
        UserError: there is none, or only a pickled one that may not be read.
    """
    stems = ("diffusion_pytorch_model", "model")
    endings = ("safetensors", "safetensors.index.json", "fp16.safetensors")
    for stem in stems:
        for ending in endings:
            if (folder / f"{stem}.{ending}").is_file():
                return folder / f"{stem}.{ending}"
    for name in ("diffusion_pytorch_model.bin", "pytorch_model.bin"):
        if (folder / name).is_file():
            if not allow_pickle:
                raise UserError(_refusal(folder / name))
            return folder / name
    raise UserError(f"{folder}: holds no weights (diffusion_pytorch_model or model .safetensors)")


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise UserError(f"{index}: is not an index of shards: {error}") from None
    for name in names:
        if Path(name).name != name or Path(name).suffix != ".safetensors":
            raise UserError(f"{index}: names {name!r}; a shard is a .safetensors file next to it")
    return [index.parent / name for name in names]


def _safetensors(path: Path, stack: ExitStack) -> Weights:
    try:
        file = stack.enter_context(safe_open(str(path), framework="pt"))
        metadata = dict(file.metadata() or {})
        tensors = {name: _source(file, name, path) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: is not a whole safetensors file: {error}") from None
    return Weights(tensors, metadata)


def _source(file: Any, name: str, path: Path) -> Source:
    part = file.get_slice(name)
    dtype = _DTYPES.get(part.get_dtype())
    if dtype is None:
        raise UserError(f"{path}: {name} is of type {part.get_dtype()}, which is not supported")
    return Source(tuple(part.get_shape()), dtype, lambda: file.get_tensor(name))


def _pickled(path: Path, allowed: bool) -> dict[str, Source]:
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    if not allowed:
        raise UserError(_refusal(path))
    try:
        tree = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch.load fails in as many ways as there are pickles; none of them is a bug of ours.
        raise UserError(
            f"{path}: holds more than tensors, or is damaged: {first_line(error)}"
        ) from None
    while isinstance(tree, dict) and isinstance(tree.get("state_dict"), dict):
        tree = tree["state_dict"]
    if not isinstance(tree, dict):
        raise UserError(f"{path}: holds no state dict")
    return {
        str(name): _loaded(tensor) for name, tensor in tree.items() if isinstance(tensor, Tensor)
    }


def _loaded(tensor: Tensor) -> Source:
    return Source(tuple(tensor.shape), tensor.dtype, lambda: tensor)


def _refusal(path: Path) -> str:
    return (
        f"{path}: is pickled and could run code when opened; get it as .safetensors, or, if you "
        "trust its source, add --allow-pickle"
    )
