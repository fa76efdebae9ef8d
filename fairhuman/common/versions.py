"""The versions of the packages that the work is done with."""

from __future__ import annotations

from importlib import metadata

PACKAGES = (
    "torch",
    "triton",
    "diffusers",
    "transformers",
    "deepspeed",
    "bitsandbytes",
    "xformers",
)
"""What computes; not all of them need be installed."""


def version(package: str) -> str | None:
    """Return an installed package's version; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
