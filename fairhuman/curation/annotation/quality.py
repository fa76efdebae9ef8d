"""How well a detector finds what COCO-WholeBody annotates, and how fast.

python -m fairhuman.curation.annotation.quality \
    --annotations coco_wholebody_val_v1.0.json --images val2017
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from fairhuman.common.errors import UserError
from fairhuman.common.images import open_image
from fairhuman.curation.annotation.detector import REGIONS, Detection, DetectorChoice, Region
from fairhuman.curation.geometry import iou
from fairhuman.curation.importers.coco_wholebody import import_coco_wholebody
from fairhuman.data.records import Reading, load_records
from fairhuman.data.regions import Box

OVERLAPS = (0.3, 0.5)
# Longer sides of the annotated boxes, in pixels of the stored image.
SIZES = (0.0, 16.0, 32.0, 96.0, float("inf"))


@dataclass
class Counts:
    """What was found of one region in all images, at one overlap."""

    truths: list[float] = field(default_factory=list)
    """The longer side of each annotated box,"""
    hits: list[bool] = field(default_factory=list)
    """and whether it was found."""
    found: int = 0

    def add(self, truth: Sequence[Box], found: Sequence[Region], overlap: float) -> None:
        """Match an image's boxes, the surest first, each to one annotated box."""
        left = dict(enumerate(truth))
        for region in sorted(found, key=lambda thing: -thing.score):
            best = max(left, key=lambda i: iou(left[i], region.box), default=None)
            if best is not None and iou(left[best], region.box) >= overlap:
                del left[best]
        self.truths += [max(box[2:]) for box in truth]
        self.hits += [i not in left for i in range(len(truth))]
        self.found += len(found)

    def recall(self, low: float = 0.0, high: float = float("inf")) -> str:
        """Return the share of annotated boxes of such sizes that were found."""
        hits = [hit for side, hit in zip(self.truths, self.hits, strict=True) if low <= side < high]
        return _share(sum(hits), len(hits))

    def precision(self) -> str:
        """Return the share of found boxes that are annotated."""
        return _share(sum(self.hits), self.found)


def measure(pairs: Sequence[tuple[dict[str, Sequence[Box]], Detection]]) -> Iterator[str]:
    """Yield a table: recall and precision by region and overlap, recall by size.

    Args:
        pairs: of annotated boxes and detections by region, one per image.
    """
    bins = list(pairwise(SIZES))
    sizes = " | ".join(f"recall, {low:g} to {high:g} px" for low, high in bins)
    yield f"| region | IoU | recall | precision | {sizes} |"
    yield "| --- " * (4 + len(bins)) + "|"
    for region in REGIONS:
        for overlap in OVERLAPS:
            counts = Counts()
            for truth, detection in pairs:
                counts.add(truth.get(region, ()), detection.get(region, ()), overlap)
            by_size = " | ".join(counts.recall(low, high) for low, high in bins)
            row = (region, f">= {overlap}", counts.recall(), counts.precision(), by_size)
            yield f"| {' | '.join(row)} |"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.2f} ({part}/{whole})" if whole else "-"


def make_parser() -> argparse.ArgumentParser:
    """Return the parser, of which the CLI reference is made too."""
    parser = argparse.ArgumentParser(
        prog="python -m fairhuman.curation.annotation.quality",
        description=(__doc__ or "").partition("\n")[0],
    )
    parser.add_argument("--annotations", type=Path, required=True, help="COCO-WholeBody's JSON")
    parser.add_argument("--images", type=Path, required=True, help="the folder of its images")
    parser.add_argument("--threshold", type=float, default=0.5, help="least confidence")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the measurement; returns the exit code."""
    args = make_parser().parse_args(argv)
    try:
        detector = DetectorChoice("mediapipe", {"threshold": args.threshold}).make()
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "truth"
            import_coco_wholebody(args.annotations, args.images, root)
            records, _ = load_records(root, Reading(REGIONS))
            images = [open_image(record.image) for record in records]
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    detector.detect(images[0])
    start, cpu = time.perf_counter(), time.process_time()
    found = [detector.detect(image) for image in images]
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    truths: list[dict[str, Sequence[Box]]] = [
        {region: record.regions[region].boxes for region in REGIONS} for record in records
    ]
    print("\n".join(measure(list(zip(truths, found, strict=True)))))
    print(
        f"{len(images)} images, {detector.name} {detector.version}: "
        f"{len(images) / cpu:.2f} images/s per core ({len(images) / wall:.2f} by the clock)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
