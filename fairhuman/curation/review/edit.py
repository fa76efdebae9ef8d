"""What the page sends: the whole annotation of one image, as a human left it."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fairhuman.common.errors import DataError
from fairhuman.common.quoting import cut
from fairhuman.data.records import LONGEST_NAME, MOST_BOXES

LARGEST = 2**20
"""Bytes of an edit."""

Side = Annotated[float, Field(allow_inf_nan=False)]


class RegionEdit(BaseModel):
    """Where a region is; no box and no mask: it is not in the image."""

    model_config = ConfigDict(extra="forbid")

    boxes: Annotated[list[tuple[Side, Side, Side, Side]], Field(max_length=MOST_BOXES)]
    """x, y, width, height in pixels of the upright image."""
    mask: Annotated[str, Field(max_length=LONGEST_NAME)] | None = None
    """The file name of one that the image has, had or was given in this session."""


class Edit(BaseModel):
    """An image's new state, and the one that it was made from."""

    model_config = ConfigDict(extra="forbid")

    version: str
    """Of the state that the human saw."""
    text: str
    regions: dict[str, RegionEdit | None]
    """By region; None: nobody has looked for it."""
    done: bool = False
    """The human is done with this image: what it has is right."""


def parse_edit(body: bytes) -> Edit:
    """Return what the page sent.

    Raises:
        DataError: it is no such thing.
    """
    try:
        return Edit.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the edit"
        raise DataError(cut(f"{place}: {first['msg']}")) from None
