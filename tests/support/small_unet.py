"""The config of a UNet of SDXL's form that computes in milliseconds."""

from __future__ import annotations

from typing import Any

TINY: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (32, 64, 64),
    "transformer_layers_per_block": (1, 1, 1),
    "attention_head_dim": (2, 4, 4),
    "cross_attention_dim": 32,
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 80,
}
