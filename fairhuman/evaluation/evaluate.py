"""`fairhuman evaluate`: measure a folder of pictures."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from fairhuman.common.error_text import first_line
from fairhuman.common.errors import OutputError, UserError
from fairhuman.common.files import write_text
from fairhuman.evaluation import alignment, confidence, distances, hpsv2
from fairhuman.evaluation.figures import METHOD, Figure, Measured
from fairhuman.evaluation.missing import MissingError
from fairhuman.evaluation.picture_pairs import Pictures, find_pictures

METRICS = (*confidence.METRICS, *distances.METRICS, *alignment.METRICS, *hpsv2.METRICS)


@dataclass
class Evaluation:
    """What was measured, and what was not."""

    pictures: Pictures
    seed: int
    device: str
    measured: list[Measured] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    """Metric to why it was not computed."""

    @property
    def figures(self) -> list[Figure]:
        """All figures."""
        return [figure for measured in self.measured for figure in measured.figures]

    def lines(self) -> list[str]:
        """Return the figures as a table, and what was left out."""
        rows = [("metric", "figure", "value", "95 % interval", "of")]
        for figure in self.figures:
            interval = "" if figure.interval is None else "{:.4f} … {:.4f}".format(*figure.interval)
            value = "none" if figure.value is None else f"{figure.value:.4f}"
            rows.append((figure.metric, figure.name, value, interval, str(figure.count)))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        lines += [f"{f.metric}, {f.name}: {f.note}" for f in self.figures if f.note]
        lines += [f"left out: {metric}: {reason}" for metric, reason in self.left_out.items()]
        return lines

    def as_json(self) -> dict[str, Any]:
        """Return all that is known, for a JSON file."""
        per_image: dict[str, list[float]] = {}
        settings: dict[str, Any] = {}
        packages = {"fairhuman", "numpy", "pillow", "torch"}
        for measured in self.measured:
            per_image |= measured.per_image
            settings |= measured.settings
            packages |= set(measured.packages)
        return {
            "images": str(self.pictures.root),
            "count": len(self.pictures),
            "figures": [asdict(figure) for figure in self.figures],
            "left_out": self.left_out,
            "interval": METHOD,
            "seed": self.seed,
            "settings": settings,
            "device": self.device,
            "versions": {"python": platform.python_version()}
            | {name: metadata.version(name) for name in sorted(packages)},
            "per_image": [
                {"file_name": name} | {metric: per_image[metric][i] for metric in per_image}
                for i, name in enumerate(self.pictures.names)
            ],
        }


def evaluate(
    images: Path,
    *,
    reference: Path | None = None,
    prompts: Path | None = None,
    metrics: Sequence[str] | None = None,
    seed: int = 0,
    device: str | None = None,
    batch_size: int = 16,
    clip_model: str = alignment.CLIP,
    inception: Path | None = None,
    hpsv2_weights: Path | None = None,
) -> Evaluation:
    """Measure the pictures of a folder.

    All that is asked for is loaded before anything is measured. Nothing is downloaded.

    Args:
        images: the folder.
        reference: a folder of pictures that they should be like, for `fid` and `kid`.
        prompts: a text file, for `clip` and `hpsv2`; see `find_prompts`.
        metrics: of METRICS; None: all that can be computed, and `left_out` says why others not.
        seed: of the bootstrap and of KID's subsets.
        device: torch's name of it; None: a GPU where there is one.
        batch_size: pictures at a time.
        clip_model: a CLIP in transformers' layout: a folder, or a name in the hub's cache; `hpsv2`
            takes its tokenizer.
        inception: Inception's weights, for `fid` and `kid`; see `distances.URL`.
        hpsv2_weights: HPS_v2.1_compressed.pt, for `hpsv2`.

    Raises:
        UserError: a folder cannot be used, or a metric that `metrics` names cannot be computed.
    """
    for metric in metrics or ():
        if metric not in METRICS:
            raise UserError(f"--metrics {metric}: must be of {', '.join(METRICS)}")
    if batch_size < 1:
        raise UserError(f"--batch-size {batch_size}: must be at least 1")
    where = _device(device)
    pictures = find_pictures(images)
    compared = find_pictures(reference) if reference else None
    batched: dict[str, Any] = {"seed": seed, "device": where, "batch_size": batch_size}
    prompted: dict[str, Any] = {"pictures": pictures, "prompts": prompts, **batched}
    groups: list[tuple[Sequence[str], Callable[[Sequence[str]], Callable[[], Measured]]]] = [
        (confidence.METRICS, partial(confidence.prepare, pictures=pictures, seed=seed)),
        (
            distances.METRICS,
            partial(
                distances.prepare,
                pictures=pictures,
                reference=compared,
                inception=inception,
                **batched,
            ),
        ),
        (alignment.METRICS, partial(alignment.prepare, model=clip_model, **prompted)),
        (
            hpsv2.METRICS,
            partial(hpsv2.prepare, weights=hpsv2_weights, tokenizer=clip_model, **prompted),
        ),
    ]
    done = Evaluation(pictures, seed, str(where))
    ready = []
    for names, prepare in groups:
        wanted = [name for name in names if metrics is None or name in metrics]
        if wanted:
            try:
                ready.append(prepare(wanted))
            except MissingError as error:
                done.left_out |= dict.fromkeys(wanted, str(error))
    if done.left_out and (metrics is not None or not ready):
        raise MissingError("\n".join(f"{name}: {reason}" for name, reason in done.left_out.items()))
    done.measured = [measure() for measure in ready]
    return done


def write_json(evaluation: Evaluation, out: Path) -> None:
    """Write the file whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    write_text(out, json.dumps(evaluation.as_json(), indent=2, ensure_ascii=False) + "\n")


def check_out(out: Path) -> None:
    """Check that the file can be written, before anything is measured.

    Raises:
        OutputError: it cannot.
    """
    folder = out.resolve().parent
    if out.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise OutputError(f"--out {out}: cannot be written: give a file in a folder that is there")


def _device(name: str | None) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name}: {first_line(error)}") from None
    return device
