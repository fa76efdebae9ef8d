"""The files in which DeepSpeed keeps a rank's states: written and read by its engine."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from fairhuman.common.error_text import first_line
from fairhuman.common.errors import ConfigError
from fairhuman.zero import optimizer_state
from fairhuman.zero.protocol import Engine
from fairhuman.zero.reshard import UNFIT

Write = Callable[[Any, Path], object]
Add = Callable[[Write, Any, Path], None]

_TAG = "deepspeed"
"""The folder in a checkpoint's folder."""
_OF_RANK = re.compile(r"zero_pp_rank_[0-9]+")


def save_states(engine: Engine, folder: Path, add: Add) -> list[Exception]:
    """Have this rank's states written; a collective.

    Args:
        engine: of DeepSpeed.
        folder: the checkpoint's, which is there.
        add: called with what writes a tree of states, the tree, and the file in `folder` that it
            belongs in. The next step changes the tree's tensors.

    Returns:
        What could not be written: raised on one rank, it would leave the others at a barrier.
    """
    with _saving(engine, add) as failed:
        # What is frozen comes from model.pretrained again.
        engine.save_checkpoint(
            str(folder), tag=_TAG, save_latest=False, exclude_frozen_parameters=True
        )
    return failed


def left_by_deepspeed(folder: Path) -> list[Path]:
    """Return what `save_states` has written beside the ranks' states, of all ranks."""
    found = [*folder.glob("*.py"), *(folder / _TAG).rglob("*")]
    return [path for path in found if path.is_file() and not _OF_RANK.search(path.name)]


def load_states(engine: Engine, folder: Path) -> None:
    """Read this rank's states into an engine of the same form; a collective.

    Raises:
        ConfigError: DeepSpeed cannot take them.
    """
    try:
        with redirect_stdout(None):  # some of DeepSpeed's optimizers print here
            frozen = any(not p.requires_grad for p in engine.module.parameters())
            path, _ = engine.load_checkpoint(str(folder), tag=_TAG, load_module_strict=not frozen)
    except UNFIT as error:
        raise ConfigError(f"{folder}: DeepSpeed cannot load it: {first_line(error)}") from error
    if path is None:
        raise ConfigError(f"{folder}: DeepSpeed found no checkpoint in it")
    optimizer_state.page(engine.optimizer.optimizer)


def optimizer_name(engine: Engine) -> str:
    """Return the class of the user's optimizer, as its library calls it."""
    kinds = type(engine.optimizer.optimizer).__mro__
    return next(kind.__name__ for kind in kinds if not kind.__module__.startswith("fairhuman"))


@contextmanager
def _saving(engine: Engine, add: Add) -> Iterator[list[Exception]]:
    """Hand DeepSpeed's states to `add`; keep failures for later: others wait at a barrier."""
    failed: list[Exception] = []

    def keeping(work: Callable[..., Any]) -> Callable[..., None]:
        def keep(*args: Any, **kwargs: Any) -> None:
            try:
                work(*args, **kwargs)
            except (OSError, RuntimeError) as error:
                failed.append(error)

        return keep

    writer = engine.checkpoint_engine
    write = writer.save

    def hand_over(state_dict: Any, path: str) -> None:
        add(lambda tree, file: write(tree, str(file)), state_dict, Path(path))

    # The last copies DeepSpeed's own scripts into each checkpoint, on rank 0.
    works = [
        (writer, "makedirs", writer.makedirs),
        (writer, "save", hand_over),
        (engine, "_copy_recovery_script", engine._copy_recovery_script),  # type: ignore[attr-defined]
    ]
    for owner, name, work in works:
        setattr(owner, name, keeping(work))
    try:
        yield failed
    finally:
        for owner, name, _ in works:
            delattr(owner, name)  # the class's own again
