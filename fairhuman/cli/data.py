"""Commands of data sets: draw, annotate, look at them; see `imports` for import."""

from __future__ import annotations

import argparse
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairhuman.cli import imports
from fairhuman.common.counted import counted
from fairhuman.common.errors import OutputError, UserError

if TYPE_CHECKING:
    from fairhuman.curation.inspection.inspect import View


def add(commands: Any) -> None:
    """Add them to the subparsers of `fairhuman`."""
    data = commands.add_parser("demo-data", help="create the demo data set of drawn people")
    data.add_argument("--out", type=Path, default=Path("demo/people"), help="the data set's folder")
    data.add_argument("--count", type=int, default=512, help="people to draw")
    data.add_argument("--size", type=int, default=128, help="side in pixels")
    data.add_argument("--seed", type=int, default=0, help="another seed draws other people")
    data.set_defaults(run=_demo_data)

    imports.add(commands)

    exporter = commands.add_parser("export-annotations", help="export annotations as COCO JSON")
    exporter.add_argument("folder", type=Path, help="a data set")
    exporter.add_argument("--out", type=Path, required=True, help="the JSON file")
    exporter.set_defaults(run=_export_annotations)

    annotate = commands.add_parser("annotate", help="detect faces and hands in a folder of images")
    annotate.add_argument("folder", type=Path, help="a folder of images")
    annotate.add_argument(
        "--detector",
        default="mediapipe",
        help="mediapipe, yolo, or yours as module:Class; default: mediapipe",
    )
    annotate.add_argument("--threshold", type=float, default=0.5, help="minimum confidence")
    annotate.add_argument(
        "--face-weights", type=Path, help="weights of a YOLO detector, for --detector yolo"
    )
    annotate.add_argument(
        "--hand-weights", type=Path, help="weights of a YOLO detector, for --detector yolo"
    )
    annotate.add_argument(
        "--trust-weights", action="store_true", help="load pickled weights, which can run code"
    )
    annotate.add_argument(
        "--force", action="store_true", help="also replace annotations that a human edited"
    )
    annotate.add_argument("--jobs", type=int, help="processes; default: one per core")
    annotate.set_defaults(run=_annotate)

    pack = commands.add_parser("pack", help="convert a data set to Parquet or WebDataset shards")
    pack.add_argument("folder", type=Path, help="a data set: a folder with metadata.jsonl")
    pack.add_argument("--to", choices=("parquet", "webdataset"), required=True, help="shard format")
    pack.add_argument("--out", type=Path, required=True, help="output folder; set data.root to it")
    pack.add_argument(
        "--shard-size",
        default="1GiB",
        metavar="SIZE",
        help="maximum shard size, such as 512MiB; default: 1GiB",
    )
    pack.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="OURS=YOURS",
        help="a key of metadata.jsonl that has another name, as in data.columns; may be repeated",
    )
    pack.set_defaults(run=_pack)

    inspect = commands.add_parser(
        "inspect", help="write an HTML page that shows a data set and its problems"
    )
    inspect.add_argument("folder", type=Path, help="a data set")
    inspect.add_argument("--out", type=Path, help="the page; default: inspect.html in the folder")
    inspect.add_argument(
        "--model",
        help="a folder in diffusers' layout, or a name on the hub: count the captions' tokens with "
        "its tokenizers, as training does",
    )
    inspect.add_argument(
        "--resolution", type=int, help="training resolution; default: 1024, or the config's"
    )
    inspect.add_argument(
        "--limit", type=int, default=300, help="maximum number of samples on the page"
    )
    inspect.add_argument(
        "--train-view", action="store_true", help="show the samples as the trainer sees them"
    )
    inspect.add_argument("--config", type=Path, help="the training config, for --train-view")
    inspect.add_argument(
        "--epoch", type=int, default=0, help="the epoch whose crops --train-view shows"
    )
    inspect.add_argument(
        "--strict", action="store_true", help="list problems and exit with 1 if there are any"
    )
    inspect.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="KIND",
        help="a kind of problem that --strict ignores",
    )
    inspect.set_defaults(run=_inspect)

    review = commands.add_parser("review", help="review and correct annotations in the browser")
    review.add_argument("folder", type=Path, help="a data set, or a folder of images")
    review.add_argument(
        "--config", type=Path, help="the training config whose regions and crops are shown"
    )
    review.add_argument(
        "--resolution", type=int, help="training resolution; default: 1024, or the config's"
    )
    review.add_argument("--epoch", type=int, default=0, help="the epoch whose crops are shown")
    review.add_argument(
        "--port", type=int, default=0, help="port on 127.0.0.1; default: any free port"
    )
    review.add_argument("--open", action="store_true", help="open the page in your browser")
    review.set_defaults(run=_review)


def _demo_data(args: argparse.Namespace) -> None:
    from fairhuman.demo.drawn import draw_people

    counts = draw_people(args.out, args.count, args.size, args.seed)
    print(
        f"{args.out}: {counts['images']} drawn people, {counts['faces']} faces, "
        f"{counts['hands']} hands; {counts['without_face']} without a face, "
        f"{counts['without_hands']} without hands"
    )


def _export_annotations(args: argparse.Namespace) -> None:
    from fairhuman.curation.export_coco import export_coco

    done = export_coco(args.folder, args.out)
    found = f"{counted(done.annotations, 'annotation')} of {counted(done.images, 'image')}"
    print(f"{args.out}: {found}")


def _annotate(args: argparse.Namespace) -> int:
    from fairhuman.curation.annotation.annotate import annotate
    from fairhuman.curation.annotation.detector import DetectorChoice

    if not 0 < args.threshold < 1:
        raise UserError(f"--threshold {args.threshold}: must be between 0 and 1")
    if args.jobs is not None and args.jobs < 1:
        raise UserError(f"--jobs {args.jobs}: must be at least 1")
    settings = {"threshold": args.threshold}
    weights = {"face_weights": args.face_weights, "hand_weights": args.hand_weights}
    if args.detector == "yolo":
        settings |= weights | {"trust_weights": args.trust_weights}
    elif any(weights.values()) or args.trust_weights:
        raise UserError("--face-weights, --hand-weights and --trust-weights need --detector yolo")
    choice = DetectorChoice(args.detector, settings)
    try:
        done = annotate(args.folder, choice, force=args.force, jobs=args.jobs)
    except KeyboardInterrupt:
        print(
            f"fairhuman: stopped; run the same command to continue with {args.folder}",
            file=sys.stderr,
        )
        return 130
    print("\n".join(done.lines()))
    return 0


def _pack(args: argparse.Namespace) -> int:
    from fairhuman.curation.packing.pack import pack

    size, columns = _shard_bytes(args.shard_size), dict(map(_column, args.column))
    try:
        done = pack(args.folder, args.out, args.to, size, columns)
    except KeyboardInterrupt:
        print(
            f"fairhuman: stopped; run the same command to continue with {args.out}",
            file=sys.stderr,
        )
        return 130
    kept = f", {done.kept} of them from before" if done.kept else ""
    print(
        f"{args.out}: {done.images} images in {done.shards} shards{kept}, "
        f"{done.bytes / 2**20:.1f} MiB of pictures; train on it with data.root={args.out}"
    )
    return 0


def _shard_bytes(text: str) -> int:
    found = re.fullmatch(r"(\d{1,9})(KiB|MiB|GiB)", text)
    if not found or not int(found[1]):
        raise UserError(
            f"--shard-size {text}: must be a whole number of KiB, MiB or GiB, as 512MiB"
        )
    return int(found[1]) * {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}[found[2]]


def _column(text: str) -> tuple[str, str]:
    ours, equals, yours = text.partition("=")
    if not (ours and equals and yours):
        raise UserError(f"--column {text}: must be OURS=YOURS, as text=caption")
    return ours, yours


def _inspect(args: argparse.Namespace) -> int:
    from fairhuman.curation.inspection.findings import KINDS
    from fairhuman.curation.inspection.inspect import inspect, write_page
    from fairhuman.models.families.sdxl.captions import load_tokenizers

    for kind in args.allow:
        if kind not in KINDS:
            raise UserError(f"--allow {kind}: must be one of {', '.join(KINDS)}")
    if args.train_view != bool(args.config):
        raise UserError("--train-view and --config go together: the crop is the config's")
    view = _view(args)
    if args.model:
        view = replace(view, tokenizers=load_tokenizers(args.model))
    out = args.out or args.folder / "inspect.html"
    if out.parent.is_dir() and not os.access(out.parent, os.W_OK):
        raise OutputError(f"{out}: cannot be written there; name another place with --out")
    found = inspect(args.folder, view)
    write_page(found, out, args.limit)
    print(found.summary())
    mistakes = found.mistakes(frozenset(args.allow)) if args.strict else []
    for line in mistakes:
        print(line)
    print(f"see {out}")
    return 1 if mistakes else 0


def _view(args: argparse.Namespace) -> View:
    """Return how a data set is looked at: by --config, --resolution and --epoch."""
    from fairhuman.config import load_config
    from fairhuman.curation.inspection.inspect import View

    if not args.config:
        return View.plain(args.folder, args.resolution or 1024)
    sized = [f"data.resolution={args.resolution}"] if args.resolution else []
    return View.of(load_config(args.config, [f"data.root={args.folder}", *sized]), args.epoch)


def _review(args: argparse.Namespace) -> None:
    from fairhuman.curation.review.server import serve

    if not 0 <= args.port < 2**16:
        raise UserError(f"--port {args.port}: must be between 0 and 65535")
    serve(args.folder, _view(args), args.port, open_page=args.open)
