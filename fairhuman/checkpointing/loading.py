"""Brings a checkpoint back into an engine, of the same form or of another."""

from __future__ import annotations

from pathlib import Path

from fairhuman.checkpointing.finding import damage_on_ranks, unsound
from fairhuman.checkpointing.manifest import (
    Manifest,
    Setup,
    read_manifest,
)
from fairhuman.checkpointing.setup import setup_of_engine
from fairhuman.common.distributed import agreed, on_rank0
from fairhuman.common.errors import ConfigError
from fairhuman.zero import optimizer_state
from fairhuman.zero.own_settings import OwnSettings
from fairhuman.zero.protocol import Engine
from fairhuman.zero.reshard import (
    OldState,
    check_files,
    check_same_model,
    open_states,
    restore,
)
from fairhuman.zero.shard_map import publish, read_shard_map, shard_map_of
from fairhuman.zero.state_files import load_states


def resumable(folder: Path, setup: Setup) -> Manifest:
    """Return the manifest of a checkpoint that a run of this setup can continue from.

    Raises:
        ConfigError: it was made with another optimizer, or by another number of ranks before
            checkpoints could be resharded.
    """
    manifest = read_manifest(folder)
    made = manifest.setup
    if made is None and manifest.ranks != setup.ranks:
        raise ConfigError(
            f"{folder}: was made by {manifest.ranks} ranks, this run has {setup.ranks}, and the "
            "FairHuman that wrote it did not record what another number needs; start "
            f"{manifest.ranks} (deepspeed --num_accelerators {manifest.ranks} …)"
        )
    if made and made.optimizer != setup.optimizer:
        raise ConfigError(
            f"optimizer.name = {setup.optimizer!r}: {folder} was made with {made.optimizer}, whose "
            f"state it cannot take over; set optimizer.name={made.optimizer}"
        )
    return manifest


def check_base(folder: Path, manifest: Manifest, base: str | None, setup: Setup) -> None:
    """Check that the frozen weights are those that a checkpoint was trained on.

    Not where it was made in another precision, in which the same weights are other numbers.

    Raises:
        ConfigError: they are others.
    """
    made = manifest.setup
    alike = made is not None and made.precision == setup.precision
    if alike and manifest.base and manifest.base != base:
        raise ConfigError(
            f"model.pretrained: {folder} was trained on another base model of the same shapes; "
            "give the one that the run was started from, with its model.quantize, or another "
            "train.output_dir to start over"
        )


def load(engine: Engine, folder: Path, verify: bool = True) -> bool:
    """Bring parameters, optimizer, schedule and loss scale back; all ranks together.

    In the form in which they were saved (ranks, ZeRO stage, offload, precision) it is bit for
    bit. In another the float32 weights and moments are too, and 8-bit moments are quantized again.
    The settings of optimizer, schedule and loss scaler stay the engine's own; see `OwnSettings`.

    Args:
        engine: of DeepSpeed.
        folder: a checkpoint.
        verify: whether to compare the contents with their digests first.

    Returns:
        Whether the form was another.

    Raises:
        ConfigError: a file is damaged, or holds another model or optimizer. The same on all ranks.
    """
    problem = on_rank0(lambda: unsound(folder)) or (verify and damage_on_ranks(folder))
    if problem:
        raise ConfigError(f"{folder}: {problem}")
    own, setup = OwnSettings(engine), setup_of_engine(engine)
    made = resumable(folder, setup).setup
    old, new = read_shard_map(folder), shard_map_of(engine)
    if old is not None and made is not None:
        check_same_model(folder, old, new)
    if old is None or made is None or (made == setup and old == new):
        resharded = False
        _load_as_is(engine, folder, setup.ranks)
    else:
        resharded = True
        agreed(lambda: restore(engine, OldState(folder, old), new))
        optimizer_state.page(engine.optimizer.optimizer)
        publish(engine)
    agreed(lambda: own.put_back(engine, open_states(folder, 0)["ds_config"]))
    return resharded


def _load_as_is(engine: Engine, folder: Path, ranks: int) -> None:
    # Opened by all before DeepSpeed does: a rank that failed alone would leave the others waiting.
    agreed(lambda: [open_states(folder, rank) for rank in range(ranks)])
    agreed(lambda: check_files(folder))
    load_states(engine, folder)
