"""A SAM of a few thousand random weights, saved with its processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

SIDE = 64


def save_sam(folder: Path, iou: float | None = None) -> Path:
    """Write a SAM; with an IoU, it says that all it sees is the mask, and predicts this IoU."""
    from transformers import SamConfig, SamImageProcessor, SamModel, SamProcessor

    layers = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_dim": 16}
    config = SamConfig(
        vision_config={
            **layers,
            "image_size": SIDE,
            "patch_size": 8,
            "output_channels": 16,
            "global_attn_indexes": [1],
            "window_size": 2,
            "num_pos_feats": 8,
        },
        prompt_encoder_config={
            "hidden_size": 16,
            "image_size": SIDE,
            "patch_size": 8,
            "mask_input_channels": 4,
        },
        mask_decoder_config={**layers, "iou_head_hidden_dim": 16, "iou_head_depth": 2},
    )
    torch.manual_seed(0)
    model = SamModel(config)
    processor = SamProcessor(
        SamImageProcessor(
            size={"longest_edge": SIDE},
            pad_size={"height": SIDE, "width": SIDE},
            mask_size={"longest_edge": SIDE // 4},
            mask_pad_size={"height": SIDE // 4, "width": SIDE // 4},
        )
    )
    if iou is not None:
        decoder = model.mask_decoder
        heads = (head.proj_out for head in decoder.output_hypernetworks_mlps)
        for layer in (decoder.upscale_conv2, *heads):
            _make_constant(layer, 1.0)
        _make_constant(decoder.iou_prediction_head.proj_out, iou)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _make_constant(layer: Any, value: float) -> None:
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.fill_(value)
