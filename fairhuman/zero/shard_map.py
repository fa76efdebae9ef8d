"""Where each parameter's float32 master weight lies in DeepSpeed's flat buffers, rank by rank.

ZeRO cuts parameters, pads and orders them as stage, number of ranks and its own settings have it.
A checkpoint keeps the places themselves, so that nothing of that has to be guessed later.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch.distributed as dist
from pydantic import Field, TypeAdapter
from torch import Tensor

from fairhuman.common.errors import ConfigError
from fairhuman.common.json_text import STRICT, Natural, parse_as
from fairhuman.common.quoting import shown, shown_key
from fairhuman.common.run_folder import LAYOUT
from fairhuman.common.text_files import read_limited
from fairhuman.zero.kinds import Kind, kind_of
from fairhuman.zero.protocol import Engine

# Of thousands of parameters on thousands of ranks.
_LARGEST = 256 << 20


class Piece(NamedTuple):
    """Elements of one parameter that follow each other in a buffer."""

    name: str
    start: int
    """The first element, in the flattened parameter."""
    numel: int
    offset: int
    """The first element, in the buffer."""


class Buffer(NamedTuple):
    """One flat tensor of a rank: pieces of parameters, and padding."""

    group: int
    """The optimizer's parameter group."""
    numel: int
    pieces: list[Piece]


class Source(NamedTuple):
    """Where some elements of a parameter are: from `offset` on in that buffer of that rank."""

    rank: int
    buffer: int
    offset: int
    numel: int
    at: int
    """The first of them, counted from the first that was asked for."""


@dataclass(frozen=True)
class ShardMap:
    """The buffers of all ranks. Raises ConfigError if they do not hold each parameter once."""

    shapes: dict[str, tuple[int, ...]]
    """Of the trained parameters, by their names in the model."""
    ranks: list[list[Buffer]]

    def __post_init__(self) -> None:
        found: Counter[str] = Counter()
        for _, _, piece in self._pieces():
            found[piece.name] += piece.numel
        for name, shape in self.shapes.items():
            numel = 1
            for side in shape:
                numel *= side
            if found[name] != numel:
                raise ConfigError(
                    f"{LAYOUT}: has {found[name]} of the {numel} elements of "
                    f"{shown_key(name)}; the checkpoint is broken"
                )

    def groups(self) -> dict[str, int]:
        """Return each parameter's group."""
        return {p.name: self.ranks[rank][index].group for rank, index, p in self._pieces()}

    def index(self) -> dict[str, list[tuple[int, int, Piece]]]:
        """Return where each parameter's pieces are: (rank, buffer, piece)."""
        places: dict[str, list[tuple[int, int, Piece]]] = {name: [] for name in self.shapes}
        for rank, buffer, piece in self._pieces():
            places[piece.name].append((rank, buffer, piece))
        return places

    def write(self, folder: Path) -> Path:
        """Write it into a checkpoint's folder; return the file."""
        tree = {"shapes": self.shapes, "ranks": self.ranks}
        path = folder / LAYOUT
        path.write_text(json.dumps(tree), encoding="utf-8")
        return path

    def _pieces(self) -> Iterator[tuple[int, int, Piece]]:
        for rank, buffers in enumerate(self.ranks):
            for index, buffer in enumerate(buffers):
                for piece in buffer.pieces:
                    yield rank, index, piece


def overlaps(places: list[tuple[int, int, Piece]], wanted: Piece) -> Iterator[Source]:
    """Yield where the elements of a wanted piece are, among all pieces of its parameter."""
    for rank, buffer, piece in places:
        first = max(piece.start, wanted.start)
        last = min(piece.start + piece.numel, wanted.start + wanted.numel)
        if first < last:
            offset = piece.offset + first - piece.start
            yield Source(rank, buffer, offset, last - first, first - wanted.start)


@dataclass(frozen=True)
class _File:
    """The file layout.json."""

    __pydantic_config__ = STRICT
    shapes: dict[str, Annotated[list[Natural], Field(max_length=16)]]
    ranks: list[list[tuple[Natural, Natural, list[tuple[str, Natural, Natural, Natural]]]]]


_KIND = TypeAdapter(_File)


def read_shard_map(folder: Path) -> ShardMap | None:
    """Read a checkpoint's layout; None if it was written by a FairHuman without it.

    Raises:
        ConfigError: it is broken: it holds other than a layout, or pieces that are not where a
            parameter or a buffer is.
    """
    path = folder / LAYOUT
    if not path.exists():
        return None
    file = parse_as(_KIND, read_limited(path, _LARGEST), path)
    groups = {group for buffers in file.ranks for group, _, _ in buffers}
    for index, buffers in enumerate(file.ranks):
        for group, numel, pieces in buffers:
            if group >= len(groups):
                raise ConfigError(f"{path}: ranks.{index}: there is no parameter group {group}")
            for name, start, count, offset in pieces:
                shape = file.shapes.get(name)
                # A parameter of no dimensions has one element.
                if shape is None or start + count > math.prod(shape) or offset + count > numel:
                    raise ConfigError(
                        f"{path}: ranks.{index}: a piece of {shown(name)} is not where that "
                        "parameter, or its buffer, is"
                    )
    ranks = [
        [Buffer(group, numel, [Piece(*piece) for piece in pieces]) for group, numel, pieces in rank]
        for rank in file.ranks
    ]
    try:
        return ShardMap({name: tuple(shape) for name, shape in file.shapes.items()}, ranks)
    except ConfigError as error:
        raise ConfigError(f"{folder}/{error}") from None


def shard_map_of(engine: Engine) -> ShardMap:
    """Return the layout of a running engine; a collective, the same on every rank."""
    ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, [buffer for buffer, _ in buffers_of(engine)])
    shapes = {
        engine.param_names[p]: tuple(p.ds_shape if hasattr(p, "ds_shape") else p.shape)
        for group in _buffers(engine).groups
        for p in group
    }
    return ShardMap(shapes, ranks)


def buffers_of(engine: Engine) -> list[tuple[Buffer, Tensor]]:
    """Return this rank's flat buffers of float32 master weights, with what lies where."""
    kind = _buffers(engine)
    find = _parted_pieces if kind.parted else _grouped_pieces
    return [
        (
            Buffer(
                engine.optimizer.sub_group_to_group_id[index] if kind.parted else index,
                kind.masters[index].numel(),
                [piece for p in group if (piece := find(engine, index, p)).numel > 0],
            ),
            kind.masters[index],
        )
        for index, group in enumerate(kind.groups)
    ]


def _parted_pieces(engine: Engine, index: int, p: Any) -> Piece:
    """Return a parameter's part under ZeRO-3, which gives each rank one of every parameter."""
    zero, part = engine.optimizer, p.partition_numel()
    start = dist.get_rank() * part
    offset = zero.grad_position[zero.get_param_id(p)][1]
    # The last ranks' parts end in padding, or are nothing else.
    return Piece(engine.param_names[p], start, min(part, p.ds_numel - start), offset)


def _grouped_pieces(engine: Engine, index: int, p: Tensor) -> Piece:
    """Return a parameter's part under ZeRO-1 and 2, which give each rank one of every group.

    Told by where its weights are: DeepSpeed's own map (`_hp_mapping`) goes by another order under
    round_robin_gradients.
    """
    flat = _buffers(engine).flats[index]
    place = (p.data_ptr() - flat.data_ptr()) // flat.element_size()
    size = flat.numel() // dist.get_world_size()
    mine = dist.get_rank() * size
    first, last = max(place, mine), min(place + p.numel(), mine + size)
    return Piece(engine.param_names[p], first - place, last - first, first - mine)


def publish(engine: Engine) -> None:
    """Give the weights that the model computes with what the master weights hold; a collective."""
    zero, kind = engine.optimizer, _buffers(engine)
    if not kind.parted:
        zero.update_lp_params()
        return
    # What DeepSpeed does at the end of its own load.
    for master, flat, parts in zip(
        kind.masters, kind.flats, zero.fp16_partitioned_groups, strict=True
    ):
        flat.data.copy_(master.data)
        for part, view in zip(parts, zero.unflatten(flat, parts), strict=True):
            part.data = view.data
    if zero.persistent_parameters:
        zero.persistent_parameters[0].partition(zero.persistent_parameters)
    zero.checkpoint_event_epilogue()


class _Buffers(NamedTuple):
    masters: list[Tensor]
    """This rank's float32 weights, flat."""
    flats: list[Tensor]
    """The weights that the model computes with, flat: of all ranks, under ZeRO-3 of this one."""
    groups: list[Any]
    """The parameters in each."""
    parted: bool
    """Whether each parameter is parted over the ranks (ZeRO-3), not each group."""


def _buffers(engine: Engine) -> _Buffers:
    import deepspeed

    zero, found = engine.optimizer, kind_of(engine)
    if found is Kind.STAGE12:
        return _Buffers(
            zero.single_partition_of_fp32_groups, zero.bit16_groups_flat, zero.bit16_groups, False
        )
    if found is Kind.BF16:
        return _Buffers(
            zero.fp32_groups_flat_partition, zero.bf16_groups_flat, zero.bf16_groups, False
        )
    if found is Kind.STAGE3:
        return _Buffers(
            zero.fp32_partitioned_groups_flat,
            zero.fp16_partitioned_groups_flat,
            zero.fp16_groups,
            True,
        )
    raise ConfigError(
        f"deepspeed {deepspeed.__version__} chose the optimizer {type(zero).__name__}, whose "
        "state cannot be put into checkpoints; choose another ZeRO stage or offload"
    )
