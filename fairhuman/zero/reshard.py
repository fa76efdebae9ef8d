"""A checkpoint of some ranks and ZeRO stage, put into an engine of others.

Master weights and moments go by the parameters' names, piece by piece, from the files of the old
ranks (mapped, not read as a whole) into this rank's buffers. Float32 arrives bit for bit; 8-bit
moments do so where a buffer is as it was, and are else quantized again, in their new blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairhuman.common.error_text import first_line
from fairhuman.common.errors import ConfigError
from fairhuman.common.quoting import shown_key
from fairhuman.zero import optimizer_state as moments
from fairhuman.zero.optimizer_state import State
from fairhuman.zero.optimizers import is_vector
from fairhuman.zero.protocol import Engine
from fairhuman.zero.shard_map import Buffer, ShardMap, buffers_of, overlaps

UNFIT = (RuntimeError, LookupError, TypeError, ValueError, AttributeError, AssertionError)
"""What code raises that meets a state of other parts, types or sizes than it expects."""


def check_same_model(folder: Path, old: ShardMap, new: ShardMap) -> None:
    """Check that the checkpoint's trained parameters are this model's.

    Raises:
        ConfigError: other names, shapes or parameter groups.
    """
    names = sorted({*old.shapes, *new.shapes})
    unlike = [name for name in names if old.shapes.get(name) != new.shapes.get(name)]
    if unlike:
        there, here = (list(layout.shapes.get(unlike[0], ())) for layout in (old, new))
        raise ConfigError(
            f"{folder}: holds another model than the section model: {len(unlike)} of {len(names)} "
            f"trained parameters differ, such as {shown_key(unlike[0])} "
            f"({there or 'none'} there, {here or 'none'} here); give the model, method and LoRA "
            "that the run was started with"
        )
    if _mixed_groups(old):
        raise ConfigError(
            f"{folder}: its optimizer grouped the parameters otherwise; continue with the "
            "FairHuman that wrote it"
        )


def _mixed_groups(layout: ShardMap) -> bool:
    """Whether a parameter group holds matrices as well as vectors, which are trained otherwise."""
    kinds = {
        (group, is_vector(name, len(layout.shapes[name])))
        for name, group in layout.groups().items()
    }
    return len(kinds) > len({group for group, _ in kinds})


class OldState:
    """The files of a checkpoint's ranks, opened but not read.

    Raises:
        ConfigError: a file cannot be opened, or is not a rank's of this layout.
    """

    def __init__(self, folder: Path, layout: ShardMap) -> None:
        with _fitting(folder):
            self._open(folder, layout)

    def _open(self, folder: Path, layout: ShardMap) -> None:
        self.folder = folder
        self.layout = layout
        self.places = layout.index()
        self.masters: list[list[Tensor]] = []
        self.states: list[list[State]] = []
        for rank, buffers in enumerate(layout.ranks):
            tree = open_states(folder, rank)
            zero = tree["optimizer_state_dict"]
            if rank == 0:
                self.scaling = zero
                self.config = tree["ds_config"]
            if "fp32_flat_groups" in zero:  # ZeRO-3
                self.masters.append(zero["fp32_flat_groups"])
                base = zero["optimizer_state_dict"]
            else:
                self.masters.append(zero["single_partition_of_fp32_groups"])
                base = zero["base_optimizer_state"]
            self.states.append(_by_buffer(base, buffers))
            self.param_groups = base["param_groups"]
        self.common = _open(folder, "*mp_rank_00_model_states.pt")

    def master(self, rank: int, buffer: int, start: int, count: int) -> Tensor:
        """Return some elements of a buffer's master weights, float32."""
        return self.masters[rank][buffer][start : start + count]

    def moment(self, name: str) -> Callable[[int, int, int, int], Tensor]:
        """Return what reads a moment's elements as `master` does the weights'."""
        return lambda rank, buffer, start, count: moments.read(
            self.states[rank][buffer], name, start, count
        )

    def state_of(self, buffer: Buffer) -> State | None:
        """Return the optimizer's state of this very buffer, None if no rank had it."""
        for buffers, states in zip(self.layout.ranks, self.states, strict=True):
            if buffer in buffers:
                return states[buffers.index(buffer)]
        return None

    def any_state(self, group: int) -> State:
        """Return the optimizer's state of some old buffer of a parameter group."""
        for buffers, states in zip(self.layout.ranks, self.states, strict=True):
            for buffer, state in zip(buffers, states, strict=True):
                if buffer.group == group and buffer.pieces:
                    return state
        return {}

    @torch.no_grad()
    def fill(
        self, flat: Tensor, buffer: Buffer, read: Callable[[int, int, int, int], Tensor]
    ) -> None:
        """Write what `read` has for each of a buffer's pieces, and leave its padding."""
        for piece in buffer.pieces:
            for source in overlaps(self.places[piece.name], piece):
                start = piece.offset + source.at
                values = read(source.rank, source.buffer, source.offset, source.numel)
                flat[start : start + source.numel].copy_(values)


def restore(engine: Engine, old: OldState, new: ShardMap) -> None:
    """Put the old state into this rank's buffers, optimizer, schedule and loss scale.

    No collective; `shard_map.publish` must follow. On an error the engine is left half changed.

    Args:
        engine: the one to change.
        old: of the same parameters, by `check_same_model`.
        new: the engine's own.

    Raises:
        ConfigError: the state is not what its layout says.
    """
    with _fitting(old.folder):
        _restore(engine, old, new)


@contextmanager
def _fitting(folder: Path) -> Iterator[None]:
    """Say in one line that a state made or changed by hand does not fit its layout."""
    try:
        yield
    except ConfigError:
        raise
    except UNFIT as error:
        raise ConfigError(
            f"{folder}: its states do not fit its layout ({type(error).__name__}: "
            f"{shown_key(first_line(error))}); resume from another checkpoint"
        ) from error


def _restore(engine: Engine, old: OldState, new: ShardMap) -> None:
    zero = engine.optimizer
    optimizer = zero.optimizer
    group_of = old.layout.groups()
    # That of any of its parameters: a group may have been cut out of a larger one.
    old_group = {group: group_of[name] for name, group in new.groups().items()}
    for index, group in enumerate(optimizer.param_groups):
        saved = old.param_groups[old_group[index]]
        group.update({key: value for key, value in saved.items() if key != "params"})
    for buffer, flat in buffers_of(engine):
        old.fill(flat.data, buffer, old.master)
        same = old.state_of(buffer)
        if same is not None:
            moments.copy(optimizer, flat, same)
            continue

        def fill(name: str, whole: Tensor, buffer: Buffer = buffer) -> None:
            old.fill(whole, buffer, old.moment(name))

        moments.install(optimizer, buffer.group, flat, old.any_state(old_group[buffer.group]), fill)
    if engine.fp16_enabled() and old.config["fp16"]["enabled"]:
        zero.loss_scaler = old.scaling["loss_scaler"]
        zero.dynamic_loss_scale = old.scaling["dynamic_loss_scale"]
    if engine.lr_scheduler is not None:
        engine.lr_scheduler.load_state_dict(old.common["lr_scheduler"])
    engine.global_steps = old.common["global_steps"]
    engine.global_samples = old.common["global_samples"]
    engine.skipped_steps = old.common["skipped_steps"]


def _by_buffer(base: dict[str, Any], buffers: list[Buffer]) -> list[State]:
    """Return a rank's optimizer state per buffer; torch numbers them group by group."""
    numbers = [list(group["params"]) for group in base["param_groups"]]
    return [
        moments.unwrapped(base["state"].get(numbers[buffer.group].pop(0), {})) for buffer in buffers
    ]


def open_states(folder: Path, rank: int) -> dict[str, Any]:
    """Open what a rank's optimizer wrote: mapped, so that it is read where it is used.

    Raises:
        ConfigError: it is not there, or cannot be read.
    """
    return _open(folder, f"*zero_pp_rank_{rank}_mp_rank_*_optim_states.pt")


def _open(folder: Path, pattern: str) -> dict[str, Any]:
    paths = sorted(folder.rglob(pattern))
    if not paths:
        raise ConfigError(f"{folder}: is not whole: there is no {pattern}")
    return _read(paths[0])


def check_files(folder: Path) -> None:
    """Check that no pickled file of a checkpoint would run code when DeepSpeed opens it.

    Raises:
        ConfigError: one would, or cannot be read.
    """
    for path in sorted(folder.rglob("*.pt")):
        _read(path)


def _read(path: Path) -> dict[str, Any]:
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    # All that DeepSpeed's files have besides tensors and plain values.
    known: list[Any] = [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]
    try:
        with torch.serialization.safe_globals(known):
            tree: dict[str, Any] = torch.load(
                path, map_location="cpu", mmap=True, weights_only=True
            )
    except Exception as error:  # a damaged file raises anything, from pickle to zip
        raise ConfigError(
            f"{path}: cannot be read ({first_line(error)}); resume from another checkpoint"
        ) from error
    return tree
