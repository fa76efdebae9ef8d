"""The samples of a data set as an inspection has them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fairhuman.common.counted import counted
from fairhuman.curation.inspection.findings import KINDS, NOTES, Finding, Size


@dataclass
class Sample:
    """One line of metadata.jsonl, or one image that it does not name."""

    number: int
    name: str
    caption: str = ""
    detail: str = ""
    """Its size and how many regions it has."""
    picture: str = ""
    """A data URI."""
    sizes: list[Size] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def sizes_of(self, region: str) -> list[Size]:
        """Return the sizes of one region's boxes."""
        return [size for size in self.sizes if size.region == region]

    def severity(self) -> tuple[int, int]:
        """Return a key that sorts the worst samples first."""
        ranks = [list(KINDS).index(finding.kind) for finding in self.findings]
        return (min(ranks, default=len(KINDS)), -len(ranks))


@dataclass
class Inspection:
    """Everything that the page shows."""

    root: Path
    resolution: int
    cell: int
    regions: list[str]
    samples: list[Sample]
    train_view: bool = False

    def by_kind(self) -> dict[str, list[Sample]]:
        """Return the samples with each kind of finding, worst kind first."""
        found = {
            kind: [s for s in self.samples if any(f.kind == kind for f in s.findings)]
            for kind in KINDS
        }
        return {kind: samples for kind, samples in found.items() if samples}

    def worst_first(self) -> list[Sample]:
        """Return the samples in the order of the sheet."""
        return sorted(self.samples, key=Sample.severity)

    def summary(self) -> str:
        """Return the counts in a line."""
        counts = [
            counted(sum(len(s.sizes_of(region)) for s in self.samples), region)
            for region in self.regions
        ]
        wrong = sum(any(f.kind not in NOTES for f in s.findings) for s in self.samples)
        images = counted(len(self.samples), "image")
        return (
            f"{images}, {', '.join(counts)}, seen at {self.resolution} px; "
            f"{wrong} {'image has' if wrong == 1 else 'images have'} something wrong"
        )

    def mistakes(self, allowed: frozenset[str] = frozenset()) -> list[str]:
        """Return a line for each finding that is a mistake, worst kind first."""
        return [
            f"{sample.name}: {finding.text}"
            for kind in KINDS
            if kind not in NOTES | allowed
            for sample in self.samples
            for finding in sample.findings
            if finding.kind == kind
        ]
