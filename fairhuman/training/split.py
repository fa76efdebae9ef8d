"""Which records a run trains on, and which it holds out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fairhuman.common.distributed import gathered
from fairhuman.common.errors import DataError
from fairhuman.config import Config
from fairhuman.data.index.records import Records
from fairhuman.data.mixture import Mixture
from fairhuman.training.validation import hold_out


@dataclass(frozen=True)
class Split:
    """The records of a run, in two; no image file is in both."""

    trained: Records
    held_out: Records
    epoch: int
    """Samples of an epoch: the records that are trained on, as often as they are repeated."""
    twins: int = 0
    """Records whose image is in an earlier source too."""

    def lines(self, config: Config) -> Iterator[str]:
        """Yield what is worth telling of several sources."""
        sources = config.data.named_sources
        if self.twins:
            yield (
                f"data.sources: {self.twins} images are in an earlier source too; one that is held "
                "out is trained on in none"
            )
        if len(sources) == 1:
            return
        counts = self.trained.counts()
        fractions = Mixture.of(list(sources.values())).fractions(counts)
        for (section, source), count, part in zip(sources.items(), counts, fractions, strict=True):
            times = f" x {source.repeats}" if source.repeats > 1 else ""
            yield f"{section}: {count} images{times}, {100 * float(part):.3g} % of the samples"


def split(usable: Records, config: Config) -> Split:
    """Hold `data.validation` images out of training; a collective.

    Raises:
        DataError: nothing would be left to train on, of all or of one source.
    """
    count, seed = config.data.validation, config.train.seed
    sources = config.data.named_sources
    if len(sources) == 1:
        held = hold_out(usable.ids(), count, seed)
        trained, twins = ~held, 0
    else:
        # Links may lead elsewhere on another machine.
        files = gathered(lambda: np.concatenate([part.files() for part in usable.parts]))[0]
        _, firsts = np.unique(files, return_index=True)
        places = np.sort(firsts)
        held = np.zeros(len(usable), dtype=bool)
        held[places[hold_out(usable.select(places).ids(), count, seed)]] = True
        trained, twins = ~np.isin(files, files[held]), len(files) - len(places)
    kept = usable.select(np.flatnonzero(trained))
    for (section, source), number in zip(sources.items(), kept.counts(), strict=True):
        if not number:
            raise DataError(
                f"{section}.root = {source.root!r}: all its images are held out; make "
                f"data.validation = {count} smaller"
            )
    epoch = Mixture.of(list(sources.values())).epoch(kept.counts())
    return Split(kept, usable.select(np.flatnonzero(held)), epoch, twins)
