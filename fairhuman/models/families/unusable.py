"""What a folder that is not a whole pipeline makes diffusers and transformers raise."""

from safetensors import SafetensorError

UNUSABLE = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RuntimeError,
    SafetensorError,
)
