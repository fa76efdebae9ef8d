"""Models of transformers that a flag names, with their processors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from fairhuman.common.error_text import first_line
from fairhuman.common.errors import UserError
from fairhuman.common.hub import Named, locate

# What a model of another kind, or a damaged one, makes transformers raise.
_UNFIT = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ImportError,
    RuntimeError,
    SafetensorError,
)


def device() -> torch.device:
    """Return the GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_pretrained(named: Named, kind: str, what: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """Load a processor and a model, to be used and not trained.

    Code in its repository is never run, and pickled weights are not loaded.

    Args:
        named: the flag, with a folder in transformers' layout or a name on the hub.
        kind: transformers' class, such as "AutoModelForImageTextToText".
        what: it is for a human, for messages.
        dtype: of the weights.

    Raises:
        ConfigError: there is no such model, it is of another kind, or not whole.
    """
    import transformers

    place = locate(named)
    assert place is not None  # it asks the hub
    if place.whole and not (place.path / "config.json").is_file():
        named.refuse("must be a folder with a config.json, in transformers' layout")
    how = {**place.options, "trust_remote_code": False}
    try:
        processor = transformers.AutoProcessor.from_pretrained(place.source, **how)
        if not hasattr(processor, "image_processor"):
            named.refuse(f"is no {what}: it has no processor of images")
        model, report = getattr(transformers, kind).from_pretrained(
            place.source, dtype=dtype, use_safetensors=True, output_loading_info=True, **how
        )
    except UserError:
        raise
    except _UNFIT as error:
        named.refuse(f"cannot be loaded as {what}: {first_line(error)}")
    # transformers would draw them at random.
    if missing := sorted(report["missing_keys"]):
        named.refuse(f"its weights lack {len(missing)} tensors, such as {missing[0]}")
    return processor, model.to(device()).eval()


def public_name(model: str) -> str:
    """Return what a data set may tell of a model: a folder's path would tell of this machine."""
    return Path(model).resolve().name if Path(model).is_dir() else model
