"""A picture to be drawn: its prompt, and what of its settings is its own."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    PrivateAttr,
    WithJsonSchema,
    model_serializer,
    model_validator,
)

from fairhuman.common.quoting import shown
from fairhuman.config.yaml_settings import PathText, Section, Text

LARGEST = 8192
"""Pixels of a side."""
_SIZES = "a side in pixels such as 1024, or WIDTHxHEIGHT such as 832x1216"

SamplerSteps = Annotated[int, Field(ge=1, le=1000)]
Scale = Annotated[float, Field(ge=-1000, le=1000)]


def _size(value: Any) -> Any:
    """Return (width, height)."""
    if value is None:
        return None
    if isinstance(value, str):
        parts = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", value)
        value = tuple(map(int, parts.groups())) if parts else None
    elif isinstance(value, int) and not isinstance(value, bool):
        value = (value, value)
    sides = tuple(value) if isinstance(value, list | tuple) else ()
    if len(sides) != 2 or not all(isinstance(side, int) for side in sides):
        raise ValueError(f"must be {_SIZES}")
    for side in sides:
        if side % 8 or not 8 <= side <= LARGEST:
            raise ValueError(f"its sides must be multiples of 8, from 8 to {LARGEST}")
    return sides


def _written(size: tuple[int, int] | None) -> int | str | None:
    if size is None:
        return None
    return size[0] if size[0] == size[1] else f"{size[0]}x{size[1]}"


PictureSize = Annotated[
    tuple[int, int] | None,
    BeforeValidator(_size),
    PlainSerializer(_written, when_used="json"),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 8, "maximum": LARGEST, "multipleOf": 8},
                {"type": "string", "pattern": "^[0-9]{1,5}x[0-9]{1,5}$"},
                {"type": "null"},
            ]
        }
    ),
]
"""(width, height) of a picture, or None; written as one side of a square or as WIDTHxHEIGHT."""


class SamplePrompt(Section):
    """A picture to draw: its prompt alone, or with settings of its own. What is null is the
    default's."""

    prompt: Text
    """What it should show."""
    negative: Text | None = None
    """What it should not show."""
    size: PictureSize = None
    """Its side in pixels, or WIDTHxHEIGHT, such as 832x1216."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """Of its noise."""
    steps: SamplerSteps | None = None
    """Of the sampler."""
    guidance: Annotated[float, Field(ge=0, le=1000)] | None = None
    """Scale of classifier-free guidance; 1: none."""
    control: PathText | None = None
    """Its control image, for a ControlNet or T2I-Adapter."""
    lora_scale: Scale | None = None
    """Factor on the LoRA's update; 0 draws without it."""

    _place: str = PrivateAttr("")

    @property
    def place(self) -> str:
        """Where it was written, as file:line; empty for one that no file holds."""
        return self._place

    def at(self, place: str) -> SamplePrompt:
        """Return it with its place."""
        copy = self.model_copy()
        copy._place = place
        return copy

    def refusal(self, key: str, problem: str) -> str:
        """Return the line that refuses one of its settings."""
        where = self.place or f"the prompt {shown(self.prompt)}"
        value = _written(self.size) if key == "size" else getattr(self, key)
        return f"{where}: {key} = {shown(value)}: {problem}"

    def __eq__(self, other: object) -> bool:
        """Return whether they ask for the same, wherever they were written."""
        return isinstance(other, SamplePrompt) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash(tuple(self.__dict__.values()))

    @model_validator(mode="before")
    @classmethod
    def _of_text(cls, tree: Any) -> Any:
        return {"prompt": tree} if isinstance(tree, str) else tree

    @model_serializer(mode="wrap")
    def _short(self, full: Any) -> Any:
        """Write what is set; a prompt alone as its text."""
        found = {key: value for key, value in full(self).items() if value is not None}
        return found["prompt"] if list(found) == ["prompt"] else found
