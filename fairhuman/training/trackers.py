"""Where a run's numbers and pictures go besides its own files: TensorBoard, Weights & Biases.

All have the names of metrics.jsonl. What is null there is left out here.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from fairhuman.common.errors import ConfigError
from fairhuman.common.extras import install_line
from fairhuman.common.files import as_output_error, write_text
from fairhuman.common.run_folder import TENSORBOARD, WANDB_ID
from fairhuman.config import Config

_FLOAT32_MAX = 3.4028234663852886e38


class Tracker(Protocol):
    """Something that is told of every step, on rank 0."""

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        """Add an optimizer step."""

    def picture(self, tag: str, image: Any, step: int) -> None:
        """Add a picture, [H, W, 3] uint8."""

    def close(self) -> None:
        """Write out everything; nothing can be added afterwards."""


def check_tracking(config: Config) -> None:
    """Check that what the config asks for can be had: to be called on rank 0, at the start.

    Raises:
        ConfigError: wandb is not installed, or has no key for its server.
    """
    project = config.train.wandb
    if project is None:
        return
    try:
        import wandb
    except ImportError:
        raise ConfigError(
            f"train.wandb = {project!r}: wandb is not installed; {install_line('wandb')}, or set "
            "train.wandb=null"
        ) from None
    mode = wandb.setup().settings.mode
    if mode == "online" and not wandb.api.api_key:
        raise ConfigError(
            f"train.wandb = {project!r}: wandb has no key; run `wandb login`, or set the "
            "environment variable WANDB_API_KEY, or WANDB_MODE=offline to keep the run here"
        )


def trackers(output: Path, config: Config, start: int) -> list[Tracker]:
    """Return those that the config asks for. A resumed run continues in the same ones.

    Args:
        output: OUT, which is there.
        config: the run's.
        start: the steps that are done.

    Raises:
        ConfigError: wandb could not start.
    """
    found: list[Tracker] = [TensorBoard(output, start)]
    if config.train.wandb is not None:
        found.append(Wandb(output, config, start))
    return found


class TensorBoard:
    """OUT/tensorboard."""

    def __init__(self, output: Path, start: int) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        _quiet_writer_thread()
        self.path = output / TENSORBOARD
        with as_output_error(self.path):
            self._writer = SummaryWriter(str(self.path), purge_step=start + 1)

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        """Add an optimizer step."""
        with as_output_error(self.path):
            for key, value in numbers.items():
                if abs(value) <= _FLOAT32_MAX:  # it keeps float32, where more would be infinite
                    self._writer.add_scalar(key, value, step)

    def picture(self, tag: str, image: Any, step: int) -> None:
        """Add a picture, [H, W, 3] uint8."""
        with as_output_error(self.path):
            self._writer.add_image(tag, image, step, dataformats="HWC")

    def close(self) -> None:
        """Write out everything."""
        with as_output_error(self.path):
            self._writer.close()


def _quiet_writer_thread() -> None:
    """Keep the traceback of TensorBoard's writing thread off the terminal.

    Its error is raised again by the next call of the writer, which says it in one line.
    """
    others = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if type(args.thread).__name__ != "_AsyncWriterThread":
            others(args)

    threading.excepthook = hook


class Wandb:
    """A run of Weights & Biases; wandb's own environment variables apply, such as WANDB_MODE.

    Its id is kept as OUT/wandb_id.txt. Steps that are taken again after a resume have the same
    numbers, and wandb keeps those that it has.
    """

    def __init__(self, output: Path, config: Config, start: int) -> None:
        import wandb

        train, path = config.train, output / WANDB_ID
        known = path.read_text(encoding="utf-8").strip() if start and path.is_file() else None
        try:
            self._run = wandb.init(
                project=train.wandb,
                name=train.wandb_name,
                id=known,
                resume="allow" if known else None,
                dir=str(output),
                config=config.model_dump(mode="json"),
                settings=wandb.Settings(console="off", silent=True),
            )
        except wandb.Error as error:
            raise ConfigError(
                f"train.wandb = {train.wandb!r}: wandb could not start: {error}; "
                "WANDB_MODE=offline keeps the run here"
            ) from None
        write_text(path, self._run.id + "\n")
        self._image = wandb.Image
        self._known = self._run.step

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        """Add an optimizer step."""
        if step >= self._known:
            self._run.log(dict(numbers), step=step)

    def picture(self, tag: str, image: Any, step: int) -> None:
        """Add a picture, [H, W, 3] uint8."""
        if step >= self._known:
            self._run.log({tag: self._image(image)}, step=step)

    def close(self) -> None:
        """Write out everything, and wait until it is sent."""
        self._run.finish()
