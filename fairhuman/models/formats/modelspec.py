"""What a file says of itself: ModelSpec 1.0.1 (github.com/Stability-AI/ModelSpec)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone

from fairhuman.common.errors import UserError

SETTABLE = (
    "title",
    "author",
    "date",
    "description",
    "license",
    "merged_from",
    "prediction_type",
    "resolution",
    "tags",
    "thumbnail",
    "trigger_phrase",
    "usage_hint",
)
"""The keys that a user may give."""

SDXL = "stable-diffusion-xl-v1-base"
"""What ModelSpec calls the architecture of SDXL."""


def parse_fields(texts: Sequence[str]) -> dict[str, str]:
    """Read `key=value` texts.

    Raises:
        UserError: one is not of that form, or has a key that ModelSpec leaves to the exporter.
    """
    fields = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or key not in SETTABLE:
            raise UserError(
                f"--meta {text!r}: is written key=value; keys are {', '.join(SETTABLE)}"
            )
        try:
            value.encode()
        except UnicodeEncodeError:
            raise UserError(f"--meta {text!r}: is not UTF-8, as the file's header is") from None
        fields[key] = value
    return fields


def modelspec(
    title: str,
    architecture: str,
    *,
    adapter: str = "",
    implementation: str = "sgm",
    resolution: int = 1024,
    v_prediction: bool | None = False,
    fields: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return a header's `modelspec.` keys; the hash is added when it is written.

    Args:
        title: what a browser of models shows.
        architecture: of the model, or of a LoRA's base.
        adapter: `lora` for a LoRA; empty for a whole model.
        implementation: whose names its tensors have: `sgm` (the original's) or `diffusers`.
        resolution: side of its pictures, in pixels.
        v_prediction: what it predicts: v, or the noise; None: not known.
        fields: more keys, or other values of these, from the user.
    """
    values = {
        "sai_model_spec": "1.0.1",
        "architecture": f"{architecture}/{adapter}" if adapter else architecture,
        "implementation": implementation,
        "title": title,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "resolution": f"{resolution}x{resolution}",
    }
    if v_prediction is not None:
        values["prediction_type"] = "v" if v_prediction else "epsilon"
    return {f"modelspec.{key}": value for key, value in {**values, **(fields or {})}.items()}
