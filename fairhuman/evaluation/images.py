"""Images as networks' inputs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)


def bicubic(image: Image.Image, size: tuple[int, int]) -> NDArray[np.float32]:
    """Return an RGB image resized with antialiasing, [3, height, width], neither rounded nor cut.

    Args:
        image: RGB, values in [0, 255]; next to edges the filter goes beyond them.
        size: width and height.
    """
    channels = [
        Image.fromarray(np.asarray(channel, dtype=np.float32)).resize(
            size, Image.Resampling.BICUBIC
        )
        for channel in image.split()
    ]
    return np.stack([np.asarray(channel) for channel in channels])
