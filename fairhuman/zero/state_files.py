"""The files in which DeepSpeed keeps a rank's states: written and read by its engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from fairhuman.common.error_text import first_line
from fairhuman.common.errors import ConfigError
from fairhuman.zero import optimizer_state
from fairhuman.zero.protocol import Engine
from fairhuman.zero.reshard import UNFIT

_TAG = "deepspeed"
"""The folder in a checkpoint's folder."""


def save_states(engine: Engine, folder: Path) -> list[Exception]:
    """Write this rank's states; a collective.

    Returns:
        What could not be written: raised on one rank, it would leave the others at a barrier.
    """
    with _failures(engine) as failed:
        # What is frozen comes from model.pretrained again.
        engine.save_checkpoint(
            str(folder), tag=_TAG, save_latest=False, exclude_frozen_parameters=True
        )
    return failed


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
def _failures(engine: Engine) -> Iterator[list[Exception]]:
    """Keep DeepSpeed's failures to write for later: the others wait at its next barrier."""
    failed: list[Exception] = []

    def keeping(work: Callable[..., Any]) -> Callable[..., None]:
        def keep(*args: Any, **kwargs: Any) -> None:
            try:
                work(*args, **kwargs)
            except (OSError, RuntimeError) as error:
                failed.append(error)

        return keep

    writer = engine.checkpoint_engine
    # The last copies DeepSpeed's own scripts into each checkpoint, on rank 0.
    writing = [(writer, "makedirs"), (writer, "save"), (engine, "_copy_recovery_script")]
    for owner, name in writing:
        setattr(owner, name, keeping(getattr(owner, name)))
    try:
        yield failed
    finally:
        for owner, name in writing:
            delattr(owner, name)  # the class's own again
