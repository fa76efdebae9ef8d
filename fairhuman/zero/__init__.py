"""One gradient per objective out of DeepSpeed's ZeRO, and one back in.

Only this package knows the inner names of DeepSpeed's optimizers. `reduced` takes over what ZeRO-1
and 2 do between backward pass and step; `collected` reads the buffers of all others, of which
`stage12` (offloaded), `bf16` and `stage3` know one class each.
"""

from fairhuman.zero.choose import make_gradients
from fairhuman.zero.gradients import Gradients

__all__ = ["Gradients", "make_gradients"]
