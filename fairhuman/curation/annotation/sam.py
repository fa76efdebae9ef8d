"""A SAM of transformers: the pixels of what is in a box."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fairhuman.common.hub import Named
from fairhuman.curation.pretrained import device, load_pretrained, public_name
from fairhuman.data.regions import Box


class Sam:
    """SAM, SAM-HQ or SAM 2 with its processor, in float32.

    Args:
        model: a folder in transformers' layout, or a name on the hub.

    Raises:
        UserError: there is no such model, or it is no SAM.
    """

    def __init__(self, model: str) -> None:
        self.name = public_name(model)
        self._processor, self._model = load_pretrained(
            Named("--sam", model), "AutoModelForMaskGeneration", "a SAM", torch.float32
        )

    @torch.inference_mode()
    def segment(self, image: Image.Image, box: Box) -> tuple[NDArray[np.bool_], float]:
        """Return the mask [H, W] of what a box of an RGB image shows, and the IoU it predicts."""
        x, y, width, height = box
        inputs: Any = self._processor(
            images=image, input_boxes=[[[x, y, x + width, y + height]]], return_tensors="pt"
        )
        sizes = [inputs.pop("original_sizes")]
        if "reshaped_input_sizes" in inputs:  # SAM's own
            sizes.append(inputs.pop("reshaped_input_sizes"))
        outputs = self._model(**inputs.to(device()), multimask_output=False)
        masks = self._processor.post_process_masks(outputs.pred_masks.cpu(), *sizes)
        mask: NDArray[np.bool_] = masks[0][0, 0].numpy().astype(bool)
        return mask, float(outputs.iou_scores[0, 0, 0])
