"""One of the data sets that a run trains on together."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from fairhuman.config.yaml_settings import Name, PathText, Section, Text


class Source(Section):
    """A data set of data.sources."""

    root: PathText
    """What data.root may be: a folder with metadata.jsonl, or of shards, or hf://datasets/…."""
    split: Name | None = None
    """The split of its Parquet shards; null: the only one."""
    repeats: Annotated[int, Field(ge=1, le=10**6)] = 1
    """How often each of its samples comes in an epoch, as kohya's num_repeats."""
    share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Its part of all samples that the run draws, however many it has. What the shares leave is
    divided among the sources without one, by their samples times repeats."""
    caption_prefix: Annotated[Text, StringConstraints(max_length=1000)] = ""
    """Put before each of its captions, with a space between: a trigger word, for example."""
    columns: dict[Name, Name] | None = None
    """Its names of the keys, in place of data.columns; null: those."""
