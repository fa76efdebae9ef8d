"""Commands of data sets: draw, annotate, look at them; see `imports` for import."""

from __future__ import annotations

import argparse
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairhuman.cli import imports
from fairhuman.cli.stopped import stopped
from fairhuman.common.counted import counted
from fairhuman.common.errors import OutputError, UserError

if TYPE_CHECKING:
    from fairhuman.curation.inspection.inspect import View
    from fairhuman.models.families.protocol import Family


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
        help="mediapipe, yolo, dwpose, or yours as module:Class; default: mediapipe",
    )
    annotate.add_argument("--threshold", type=float, default=0.5, help="minimum confidence")
    annotate.add_argument(
        "--person-weights",
        type=Path,
        help="YOLOX as an .onnx file, which finds the people for --detector dwpose",
    )
    annotate.add_argument(
        "--pose-weights",
        type=Path,
        help="RTMW or DWPose as an .onnx file, whose 133 keypoints --detector dwpose takes",
    )
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
        "--sam",
        metavar="MODEL",
        help="draw the masks with a SAM of transformers, in the boxes that the detector finds: a "
        "folder, or a name on the hub",
    )
    annotate.add_argument(
        "--force", action="store_true", help="also replace annotations that a human edited"
    )
    annotate.add_argument(
        "--jobs",
        type=int,
        help="processes; default: one per core, and 1 with dwpose or --sam, which use all cores",
    )
    annotate.set_defaults(run=_annotate)

    caption = commands.add_parser("caption", help="have a model describe the images of a folder")
    caption.add_argument("folder", type=Path, help="a data set, or a folder of images")
    caption.add_argument(
        "--model",
        required=True,
        help="an image-text-to-text model of transformers: a folder, or a name on the hub",
    )
    caption.add_argument(
        "--prompt",
        help="what the model is asked; default: to describe the image in one or two sentences, "
        "and nothing where it has no chat template",
    )
    caption.add_argument(
        "--prefix", default="", metavar="TEXT", help="put in front of every caption"
    )
    caption.add_argument(
        "--trigger",
        action="append",
        default=[],
        metavar="WORDS",
        help="put in front of every caption that does not hold them; may be repeated",
    )
    caption.add_argument("--batch-size", type=int, default=8, help="images at a time; default: 8")
    caption.add_argument(
        "--max-tokens", type=int, default=128, help="the longest answer; default: 128"
    )
    caption.add_argument(
        "--overwrite", action="store_true", help="also replace captions that a model wrote"
    )
    caption.set_defaults(run=_caption)

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
    from fairhuman.common.quiet import quiet
    from fairhuman.curation.annotation.annotate import annotate
    from fairhuman.curation.annotation.detector import DetectorChoice

    if not 0 < args.threshold < 1:
        raise UserError(f"--threshold {args.threshold}: must be between 0 and 1")
    if args.jobs is not None and args.jobs < 1:
        raise UserError(f"--jobs {args.jobs}: must be at least 1")
    choice = DetectorChoice(args.detector, _detector_settings(args), args.sam)
    jobs = 1 if args.jobs is None and (args.detector == "dwpose" or args.sam) else args.jobs
    if args.sam:
        quiet()
    try:
        done = annotate(args.folder, choice, force=args.force, jobs=jobs)
    except KeyboardInterrupt:
        return stopped(f"run the same command to continue with {args.folder}")
    print("\n".join(done.lines()))
    return 0


def _detector_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of the detector's constructor.

    Raises:
        UserError: there are some that belong to another detector.
    """
    yolo = {
        "face_weights": args.face_weights,
        "hand_weights": args.hand_weights,
        "trust_weights": args.trust_weights,
    }
    dwpose = {"person_weights": args.person_weights, "pose_weights": args.pose_weights}
    settings: dict[str, Any] = {"threshold": args.threshold}
    for detector, own in (("yolo", yolo), ("dwpose", dwpose)):
        if args.detector == detector:
            settings |= own
        elif any(own.values()):
            *first, last = (f"--{name.replace('_', '-')}" for name in own)
            raise UserError(f"{', '.join(first)} and {last} need --detector {detector}")
    return settings


def _caption(args: argparse.Namespace) -> int:
    from fairhuman.common.quiet import quiet
    from fairhuman.curation.captioning.caption import caption_folder
    from fairhuman.curation.captioning.captioner import Captioner
    from fairhuman.curation.captioning.wording import Wording, one_line
    from fairhuman.curation.pretrained import public_name

    for flag, value in (("--batch-size", args.batch_size), ("--max-tokens", args.max_tokens)):
        if value < 1:
            raise UserError(f"{flag} {value}: must be at least 1")
    quiet()
    by = public_name(args.model)
    if args.prompt is not None:
        by += f", asked: {args.prompt}"
    wording = Wording(one_line(args.prefix), [*filter(None, map(one_line, args.trigger))])
    try:
        done = caption_folder(
            args.folder,
            by,
            lambda: Captioner(args.model, args.prompt, args.max_tokens),
            wording,
            batch_size=args.batch_size,
            overwrite=args.overwrite,
        )
    except KeyboardInterrupt:
        return stopped(f"run the same command to continue with {args.folder}")
    print("\n".join(done.lines()))
    return 0


def _pack(args: argparse.Namespace) -> int:
    from fairhuman.curation.packing.pack import pack

    size, columns = _shard_bytes(args.shard_size), dict(map(_column, args.column))
    try:
        done = pack(args.folder, args.out, args.to, size, columns)
    except KeyboardInterrupt:
        return stopped(f"run the same command to continue with {args.out}")
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

    for kind in args.allow:
        if kind not in KINDS:
            raise UserError(f"--allow {kind}: must be one of {', '.join(KINDS)}")
    if args.train_view != bool(args.config):
        raise UserError("--train-view and --config go together: the crop is the config's")
    view = _view(args)
    if args.model:
        model = _tokenized(args)
        view = replace(view, counter=model, cell=model.cell)
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


def _tokenized(args: argparse.Namespace) -> Family:
    """Return the model of --model, which reads captions as the config says, where there is one."""
    from fairhuman.common.quiet import quiet
    from fairhuman.config import Model, load_config
    from fairhuman.models.families.keys import Keys
    from fairhuman.models.families.tokenized import tokenized

    quiet()

    settings = load_config(args.config).model if args.config else Model(pretrained=args.model)
    changed = settings.model_copy(update={"pretrained": args.model})
    return tokenized(changed, Keys("--model", "--config"))


def _view(args: argparse.Namespace) -> View:
    """Return how a data set is looked at: by --config, --resolution and --epoch."""
    from fairhuman.config.load import load_for
    from fairhuman.curation.inspection.inspect import View

    if not args.config:
        return View.plain(args.folder, args.resolution or 1024)
    sized = [f"data.resolution={args.resolution}"] if args.resolution else []
    return View.of(load_for(args.folder, args.config, sized), args.epoch)


def _review(args: argparse.Namespace) -> None:
    from fairhuman.curation.review.server import serve

    if not 0 <= args.port < 2**16:
        raise UserError(f"--port {args.port}: must be between 0 and 65535")
    serve(args.folder, _view(args), args.port, open_page=args.open)
