"""The control images that sample prompts name, opened before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from fairhuman.common.error_text import reason
from fairhuman.common.errors import ConfigError
from fairhuman.common.images import open_image
from fairhuman.config import Config


def check_controls(config: Config) -> None:
    """Check that the control images of train.sample_prompts can be read.

    Raises:
        ConfigError: one cannot; a line for each, with the place of its prompt.
    """
    problems = []
    for asked in config.train.sample_prompts:
        if asked.control:
            try:
                open_image(Path(asked.control))
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                problem = f"cannot be read as an image: {reason(error)}"
                problems.append(asked.refusal("control", problem))
    if problems:
        raise ConfigError("\n".join(problems))
