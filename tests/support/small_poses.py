"""ONNX models that see coloured blobs, with the inputs and outputs of YOLOX and RTMW.

The detector finds fixed boxes of its input where the picture holds red (a face). The pose puts a
face's keypoints on red, a left hand's on green and a right one's on blue, in the corners of what it
sees of the colour: the brows in the upper ones, the chin in the lower left one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MEAN = np.array([123.675, 116.28, 103.53])
STD = np.array([58.395, 57.12, 57.375])
CLASSES = 80

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels of the detector's input."""


def save_people(
    path: Path, side: tuple[int, int], boxes: Sequence[tuple[Box, int]], nms: bool = False
) -> Path:
    """Write a YOLOX that reads BGR from 0 to 255; `boxes` are with their COCO classes.

    Args:
        path: the file.
        side: height and width of the input.
        boxes: what it finds.
        nms: as MMDeploy exports it: boxes and confidences instead of the grid.
    """
    from onnx import TensorProto, helper

    nodes = _coloured("input", [(-1.0, -1.0, 1.0)], [0.0])  # red, as BGR holds it
    nodes += [helper.make_node("ReduceMax", ["seen"], ["any"], keepdims=1)]
    nodes += [helper.make_node("Reshape", ["any", "one"], ["flag"])]
    if nms:
        rows = np.array([[*box, 0.9] for box, _ in boxes], dtype=np.float32)[None]
        mask = np.array([[[0, 0, 0, 0, 1]]], dtype=np.float32)
    else:
        rows = _grid(side, boxes)
        mask = np.zeros((1, 1, 5 + CLASSES), dtype=np.float32)
        mask[..., 4] = 1
    # Confidences times the flag, the rest as it is.
    nodes += [
        helper.make_node("Mul", ["scaled", "flag"], ["sure"]),
        helper.make_node("Add", ["sure", "rest"], ["output"]),
    ]
    constants = {"scaled": rows * mask, "rest": rows * (1 - mask), "one": np.array([1, 1, 1])}
    return _save(path, nodes, constants, side, {"output": TensorProto.FLOAT})


def save_pose(path: Path, side: tuple[int, int], confidence: float = 0.9, count: int = 133) -> Path:
    """Write a SimCC model that reads normalised RGB, for an input of this height and width."""
    from onnx import TensorProto, helper

    height, width = side
    # Of pixels from 0 to 255: (own colour - the others) / 255, then as the input holds them.
    weights, offsets = [], []
    for channel in range(3):
        raw = np.full(3, -1.0) / 255
        raw[channel] = 1 / 255
        weights.append(raw * STD)
        offsets.append(float((raw * MEAN).sum()))
    nodes = _coloured("input", weights, offsets)
    # [1, 3, width] and [1, 3, height], then two bins for each pixel, for each keypoint.
    group = np.array([0] * 91 + [1] * 21 + [2] * 21)[:count]
    seen = np.array([0.0] * 23 + [confidence] * 110, dtype=np.float32)[:count]
    right = np.arange(133) % 2
    below = np.arange(133) // 2 % 2
    right[23 + 8], below[23 + 8] = 0, 1  # the chin
    below[23 + 17 : 23 + 27] = 0  # the brows
    constants: dict[str, NDArray[Any]] = {"group": group}
    for name, length, axis, late in (
        ("x", width, 2, right[:count]),
        ("y", height, 3, below[:count]),
    ):
        slope = np.linspace(-1e-3, 1e-3, 2 * length)
        ramp = seen[:, None] * (1 + np.where(late[:, None] == 1, slope, -slope))
        constants |= {
            f"axis_{name}": np.array([axis]),
            f"twice_{name}": np.repeat(np.arange(length), 2),
            f"ramp_{name}": ramp[None].astype(np.float32),
        }
        nodes += [
            helper.make_node("ReduceMax", ["seen", f"axis_{name}"], [f"most_{name}"], keepdims=0),
            helper.make_node("Gather", [f"most_{name}", f"twice_{name}"], [f"bins_{name}"], axis=2),
            helper.make_node("Gather", [f"bins_{name}", "group"], [f"each_{name}"], axis=1),
            helper.make_node("Mul", [f"each_{name}", f"ramp_{name}"], [f"simcc_{name}"]),
        ]
    outputs = {"simcc_x": TensorProto.FLOAT, "simcc_y": TensorProto.FLOAT}
    return _save(path, nodes, constants, side, outputs)


def _coloured(name: str, weights: Sequence[Any], offsets: Sequence[float]) -> list[Any]:
    """Return nodes that make "seen" [1, n, H, W]: 1 where a pixel has the colour, else 0."""
    from onnx import helper, numpy_helper

    kernel = np.array(weights, dtype=np.float32)[:, :, None, None]
    bias = np.array(offsets, dtype=np.float32)
    scale = 1.0 if abs(kernel).max() < 1 else 1 / 255
    return [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(kernel * scale)),
        helper.make_node("Constant", [], ["b"], value=numpy_helper.from_array(bias)),
        helper.make_node(
            "Constant", [], ["half"], value=numpy_helper.from_array(np.array(0.5, np.float32))
        ),
        helper.make_node("Conv", [name, "w", "b"], ["colour"]),
        helper.make_node("Greater", ["colour", "half"], ["is"]),
        helper.make_node("Cast", ["is"], ["seen"], to=1),
    ]


def _grid(side: tuple[int, int], boxes: Sequence[tuple[Box, int]]) -> NDArray[np.float32]:
    """Return YOLOX's raw output [1, cells, 5 + classes], a box in each of the first cells."""
    cells = sum((side[0] // stride) * (side[1] // stride) for stride in (8, 16, 32))
    rows = np.zeros((1, cells, 5 + CLASSES), dtype=np.float32)
    for i, ((left, top, right, bottom), kind) in enumerate(boxes):
        # Cell i is the i-th of the first row, of 8 x 8 pixels.
        rows[0, i, 0] = (left + right) / 2 / 8 - i
        rows[0, i, 1] = (top + bottom) / 2 / 8
        rows[0, i, 2:4] = np.log([(right - left) / 8, (bottom - top) / 8])
        rows[0, i, 4], rows[0, i, 5 + kind] = 1.0, 0.9
    return rows


def _save(
    path: Path,
    nodes: list[Any],
    constants: dict[str, NDArray[Any]],
    side: tuple[int, int],
    outputs: dict[str, int],
) -> Path:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    image = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, *side])
    graph = helper.make_graph(
        nodes,
        "model",
        [image],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, str(path))
    return path
