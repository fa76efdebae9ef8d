"""Whether an ONNX file is the model that it is given as, before rtmlib relies on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fairhuman.common.error_text import first_line
from fairhuman.common.errors import UserError
from fairhuman.curation.keypoints import COUNT

# SimCC's axes have so many bins for each pixel of the input.
_SIMCC_BINS = 2


class OnnxModel:
    """A model with what goes in and what comes out.

    Args:
        runtime: onnxruntime.
        place: the flag and the file, for messages.
        path: the file.
        device: "cuda" or "cpu".

    Raises:
        UserError: the file cannot be loaded, or takes no images.
    """

    def __init__(self, runtime: Any, place: str, path: Path, device: str) -> None:
        self.place = place
        provider = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}[device]
        try:
            self._session = runtime.InferenceSession(str(path), providers=[provider])
        # Its exceptions have no common class but this one.
        except Exception as error:
            raise UserError(
                f"{place}: is no ONNX model that onnxruntime can load: {first_line(error)}"
            ) from None
        if provider not in self._session.get_providers():
            raise UserError(
                f"{place}: onnxruntime has CUDA but cannot use it here, and would take the CPU: "
                "install the CUDA and cuDNN that it needs, or onnxruntime without GPU"
            )
        inputs = self._session.get_inputs()
        shape = inputs[0].shape if len(inputs) == 1 else []
        channels = shape[1] if len(shape) == 4 else 0
        if (type(channels) is int and channels != 3) or inputs[0].type != "tensor(float)":
            raise UserError(
                f"{place}: must take images as float32 [1, 3, height, width], and takes "
                + " and ".join(f"{entry.type} {entry.shape}" for entry in inputs)
            )
        self._name = inputs[0].name
        height, width = shape[2:]
        self.size = (height, width) if type(height) is type(width) is int else None
        """Height and width; None: any."""

    def check_people(self, side: tuple[int, int]) -> bool:
        """Return whether the model has non-maximum suppression in it.

        Raises:
            UserError: it is no YOLOX.
        """
        shape = self._shapes(side)[0]
        cells = sum((side[0] // stride) * (side[1] // stride) for stride in (8, 16, 32))
        if len(shape) == 3 and shape[0] == 1:
            if shape[2] == 5:
                return True
            if shape[1] == cells and shape[2] > 5:
                return False
        raise UserError(
            f"{self.place}: is no YOLOX person detector: its output must be [1, {cells}, 5 + "
            f"classes] or [1, people, 5], and is {list(shape)}"
        )

    def check_pose(self) -> tuple[int, int]:
        """Return the height and width of the model's input.

        Raises:
            UserError: it is no SimCC model of the 133 keypoints.
        """
        if self.size is None:
            raise UserError(f"{self.place}: must have an input of one size, as RTMW and DWPose")
        height, width = self.size
        wanted = [(1, COUNT, _SIMCC_BINS * width), (1, COUNT, _SIMCC_BINS * height)]
        found = self._shapes(self.size)
        if found != wanted:
            raise UserError(
                f"{self.place}: is no whole-body pose model: its outputs must be "
                f"{_listed(wanted)}, as RTMW's and DWPose's, and are {_listed(found)}"
            )
        return self.size

    def _shapes(self, size: tuple[int, int]) -> list[tuple[int, ...]]:
        """Run the model on a grey image; files declare their outputs loosely."""
        grey = np.full((1, 3, *size), 0.5, dtype=np.float32)
        try:
            outputs = self._session.run(None, {self._name: grey})
        except Exception as error:  # as above
            raise UserError(f"{self.place}: cannot be run: {first_line(error)}") from None
        return [tuple(output.shape) for output in outputs]


def _listed(shapes: Sequence[tuple[int, ...]]) -> str:
    return " and ".join(str(list(shape)) for shape in shapes)
