"""The accelerator that DeepSpeed runs on, which `DS_ACCELERATOR` may choose."""

from __future__ import annotations


def device_name() -> str:
    """Return "cuda", "cpu" or another kind of device."""
    from deepspeed.accelerator import get_accelerator

    return str(get_accelerator().device_name())


def precisions() -> list[str]:
    """Return the values of `train.precision` that it can train in."""
    from deepspeed.accelerator import get_accelerator

    device = get_accelerator()
    half = {"bf16": device.is_bf16_supported(), "fp16": device.is_fp16_supported()}
    return ["fp32", *(name for name, works in half.items() if works)]
