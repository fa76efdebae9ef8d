"""Units of memory, and the names of number types."""

from __future__ import annotations

import torch

GIB = 2**30
"""Bytes."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""By their names in configs and on command lines."""
