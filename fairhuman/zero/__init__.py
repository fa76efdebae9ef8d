"""One gradient per objective out of DeepSpeed's ZeRO, and one back in.

Only this room knows the inner names of DeepSpeed's optimizers: `gradients` what every one of them
goes through, `stage12`, `bf16` and `stage3` one class of optimizers each.
"""

from fairhuman.zero.gradients import ZeroGradients

__all__ = ["ZeroGradients"]
